"""Runs TFLite files beside onnxruntime, as a process of its own: a file may bring its process down.

python judge.py compare MODEL.onnx FILE.tflite          error relative to the largest output
python judge.py time CALLS FILE.tflite                  CPU seconds of each call, one thread
python judge.py call FILE.tflite                        one call, for instructions to be counted
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np


def pictures(count: int) -> np.ndarray:
    """float32 [count, 3, 224, 224]: random blots of several sizes, of mean 0 and deviation 1."""
    random = np.random.default_rng(5)
    images = np.zeros((count, 3, 224, 224), np.float32)
    for side in (2, 7, 28, 112, 224):
        blots = random.standard_normal((count, 3, side, side)).astype(np.float32)
        images += blots.repeat(224 // side, axis=2).repeat(224 // side, axis=3)
    return images / images.std()


def opened(path: str) -> Any:
    """The file in LiteRT with its default delegate, on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def feed(interpreter: Any, image: np.ndarray) -> None:
    """Sets the one input, in the layout that the file wants."""
    detail = interpreter.get_input_details()[0]
    last = int(detail["shape"][-1]) == 3
    interpreter.set_tensor(detail["index"], image[None].transpose(0, 2, 3, 1) if last else image[None])


def compare(model: str, path: str) -> dict[str, Any]:
    """The largest error over some pictures by the largest output, and the share of equal winners."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    interpreter = opened(path)
    worst = largest = 0.0
    winners = []
    for image in pictures(4):
        expected = session.run(None, {session.get_inputs()[0].name: image[None]})[0]
        feed(interpreter, image)
        interpreter.invoke()
        got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        worst = max(worst, float(np.abs(got - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
        winners.append(bool(got.argmax() == expected.argmax()))
    return {"error": worst / largest, "winners": float(np.mean(winners))}


def seconds(calls: int, path: str) -> list[float]:
    """The CPU seconds of every call, after some to get warm.

    One thread computes, so these are its latency on a machine that has nothing else to do.
    """
    runner = opened(path)
    feed(runner, pictures(1)[0])
    for _ in range(5):
        runner.invoke()
    times = []
    for _ in range(calls):
        start = time.thread_time()
        runner.invoke()
        times.append(time.thread_time() - start)
    return times


def call(path: str) -> None:
    """One call."""
    runner = opened(path)
    feed(runner, np.zeros((3, 224, 224), np.float32))
    runner.invoke()


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "call":
        call(*rest)
        sys.exit()
    found = compare(*rest) if what == "compare" else seconds(int(rest[0]), rest[1])
    print("\n" + json.dumps(found))

"""Pairs of sentences for the sentence encoder; harness ``run`` and metric ``spearman``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.zoo import zoo

TOGETHER = 16
LENGTH = 64


def calibrate() -> dict[str, np.ndarray]:
    """1500 pairs of the development set."""
    return _pairs("dev")


def evaluate() -> dict[str, np.ndarray]:
    """1379 pairs of the test set."""
    return _pairs("test")


def run(sessions: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Encodes both sentences; the score is the product of their embeddings."""
    session = sessions["model"]
    samples = iter(samples)
    while pairs := list(islice(samples, TOGETHER)):
        vectors = []
        for side in "ab":
            mask = np.stack([pair[f"{side}_mask"] for pair in pairs]).astype(np.int64)
            ids = np.stack([pair[f"{side}_ids"] for pair in pairs]).astype(np.int64)
            longest = int(mask.sum(1).max())
            feeds = {"input_ids": ids[:, :longest], "attention_mask": mask[:, :longest]}
            vectors.append(session.run(feeds)["sentence_embedding"])
        for first, second in zip(*vectors, strict=True):
            yield {"score": np.dot(first, second)}


def _pairs(part: str) -> dict[str, np.ndarray]:
    names = [f"{side}_{kind}" for side in "ab" for kind in ("ids", "mask")]
    with np.load(zoo() / f"data/stsb/stsb_{part}.npz") as arrays:
        return {**{name: arrays[name][:, :LENGTH] for name in names}, "label": arrays["score"]}

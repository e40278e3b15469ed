"""Speech denoising by two networks that carry state from frame to frame; harness ``run``.

Parts ``model_1`` (a mask on the spectrum) and ``model_2`` (on the frame); metric ``si_sdr`` of this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.zoo import zoo

FRAME, HOP = 512, 128
LATE = FRAME - HOP


def calibrate() -> dict[str, np.ndarray]:
    """4 clips of 6 s."""
    return _clips("calib")


def evaluate() -> dict[str, np.ndarray]:
    """6 clips of 6 s."""
    return _clips("eval")


def run(sessions: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Denoises clip by clip, frame by frame, with overlap-add; the output is 384 samples late."""
    mask, frame = sessions["model_1"], sessions["model_2"]
    (spectrum_in, mask_state), (mask_out, mask_state_out) = _names(mask)
    (frame_in, frame_state), (frame_out, frame_state_out) = _names(frame)
    for sample in samples:
        noisy = sample["noisy"]
        first = np.zeros((1, 2, 128, 2), np.float32)
        second = np.zeros((1, 2, 128, 2), np.float32)
        clean = np.zeros(len(noisy), np.float32)
        window, sums = np.zeros(FRAME, np.float32), np.zeros(FRAME, np.float32)
        for start in range(0, (len(noisy) - LATE) // HOP * HOP, HOP):
            window[:-HOP] = window[HOP:]
            window[-HOP:] = noisy[start : start + HOP]
            spectrum = np.fft.rfft(window)
            magnitude = np.abs(spectrum)
            outputs = mask.run({spectrum_in: magnitude[None, None].astype(np.float32), mask_state: first})
            first = outputs[mask_state_out]
            masked = magnitude * outputs[mask_out][0, 0] * np.exp(1j * np.angle(spectrum))
            estimate = np.fft.irfft(masked).astype(np.float32)
            outputs = frame.run({frame_in: estimate[None, None], frame_state: second})
            second = outputs[frame_state_out]
            sums[:-HOP] = sums[HOP:]
            sums[-HOP:] = 0
            sums += outputs[frame_out].ravel()
            clean[start : start + HOP] = sums[:HOP]
        yield {"clean": clean}


def si_sdr(outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> float:
    """The scale-invariant signal-to-distortion ratio of one clip in dB (Le Roux 2019)."""
    wanted = sample["label"]
    estimate = outputs["clean"][LATE : len(wanted) - FRAME]
    wanted = wanted[: len(wanted) - FRAME - LATE]
    estimate, wanted = estimate - estimate.mean(), wanted - wanted.mean()
    target = (estimate @ wanted) / (wanted @ wanted) * wanted
    return float(10 * np.log10((target @ target) / ((estimate - target) @ (estimate - target))))


si_sdr.unit = "dB"


def _names(session: Any) -> tuple[list[str], list[str]]:
    return [spec.name for spec in session.inputs], [spec.name for spec in session.outputs]


def _clips(part: str) -> dict[str, np.ndarray]:
    with np.load(zoo() / "data/denoise_speech/speech_white5db.npz") as arrays:
        return {
            "noisy": arrays[f"{part}_noisy"].astype(np.float32) / 32767,
            "label": arrays[f"{part}_clean"].astype(np.float32) / 32767,
        }

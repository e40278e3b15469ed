"""Words to phonemes by an encoder and a decoding loop; harness ``run``.

Parts ``encoder`` and ``decoder``; metrics ``word_accuracy`` and ``phoneme_error_rate`` of this module.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.zoo import zoo

START, STOP, STEPS = 2, 3, 20
TOGETHER = 100


@cache
def _words() -> Any:
    return json.loads((zoo() / "data/g2p_cmudict/words.json").read_text())


def calibrate() -> list[dict[str, Any]]:
    """500 words."""
    return _samples("calib")


def evaluate() -> list[dict[str, Any]]:
    """2000 words."""
    return _samples("eval")


def run(sessions: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Decodes greedily; words of one length among a hundred share their calls."""
    samples = iter(samples)
    while words := [sample["chars"] for sample in islice(samples, TOGETHER)]:
        results: list[list[str]] = [[] for _ in words]
        for length in sorted({len(word) for word in words}):
            places = [place for place, word in enumerate(words) if len(word) == length]
            spoken = _decode(sessions, np.stack([words[place] for place in places]))
            for place, phonemes in zip(places, spoken, strict=True):
                results[place] = phonemes
        for phonemes in results:
            yield {"phonemes": phonemes}


def word_accuracy(outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> bool:
    """Whether every phoneme of the word is right."""
    return bool(outputs["phonemes"] == list(sample["label"]))


word_accuracy.unit = "%"


def phoneme_error_rate(outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> tuple[int, int]:
    """One word's edits and its number of phonemes."""
    found, wanted = outputs["phonemes"], sample["label"]
    row = list(range(len(wanted) + 1))
    for i, first in enumerate(found, 1):
        previous, row[0] = row[0], i
        for j, second in enumerate(wanted, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (first != second))
    return row[-1], len(wanted)


def _rate(records: Sequence[tuple[int, int]]) -> float:
    return sum(edits for edits, _ in records) / sum(length for _, length in records)


phoneme_error_rate.aggregate = _rate
phoneme_error_rate.higher_is_better = False


def _decode(sessions: Mapping[str, Any], chars: np.ndarray) -> list[list[str]]:
    names = _words()["phonemes"]
    hidden = sessions["encoder"].run({"chars": chars})["hidden"]
    token = np.full((len(chars), 1), START, np.int64)
    spoken: list[list[str]] = [[] for _ in chars]
    done = np.zeros(len(chars), bool)
    for _ in range(STEPS):
        outputs = sessions["decoder"].run({"token": token, "hidden": hidden})
        hidden, best = outputs["hidden_out"], outputs["logits"].argmax(1)
        done |= best == STOP
        for place in np.flatnonzero(~done):
            spoken[place].append(names[best[place]])
        token = best[:, None].astype(np.int64)
        if done.all():
            break
    return spoken


def _samples(part: str) -> list[dict[str, Any]]:
    words = _words()
    index = {letter: number for number, letter in enumerate(words["graphemes"])}
    return [
        {"chars": np.array([*(index[letter] for letter in word), START], np.int64), "label": phonemes}
        for word, phonemes in words[part]
    ]

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.data import SeededSamples
from edgeopt.errors import DataError
from edgeopt.session import TensorSpec

INPUTS = (TensorSpec("image", "float32", ("batch", 3, "h", "w")), TensorSpec("mask", "int64", ("batch", 4)))


def test_inputs_have_the_shapes_and_types_of_the_model() -> None:
    calls = list(SeededSamples(INPUTS, 3, shapes={"image": (2, 3, 8, 9)}).feeds())
    assert len(calls) == 3
    assert calls[0]["image"].shape == (2, 3, 8, 9) and calls[0]["image"].dtype == np.float32
    assert calls[0]["mask"].shape == (1, 4) and set(np.unique(calls[0]["mask"])) <= {0, 1}
    assert not np.array_equal(calls[0]["image"], calls[1]["image"])


def test_a_seed_gives_the_same_inputs_and_digest_each_time() -> None:
    first, again, other = SeededSamples(INPUTS), SeededSamples(INPUTS), SeededSamples(INPUTS, seed=1)
    assert first.digest == again.digest != other.digest
    for one, two in zip(first.feeds(), again.feeds(), strict=True):
        np.testing.assert_array_equal(one["image"], two["image"])


def test_shapes_must_fit_the_model() -> None:
    with pytest.raises(DataError, match="the model has no input 'images'"):
        SeededSamples(INPUTS, shapes={"images": (1, 3, 8, 8)})
    with pytest.raises(DataError, match="cannot take the shape"):
        SeededSamples(INPUTS, shapes={"image": (1, 4, 8, 8)})

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import units
from edgeopt.errors import UserError


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3 MiB", "size", 3 * 2**20),
        ("3MiB", "size", 3 * 2**20),
        ("1.5 kB", "size", 1500),
        ("40 ms", "time", 0.04),
        ("2 min", "time", 120),
        ("1.5 GHz", "frequency", 1.5e9),
        ("4.2 GB/s", "bandwidth", 4.2e9),
        ("0.5 pp", "points", 0.5),
        ("15 dB", "decibel", 15),
        ("1e-3 s", "time", 0.001),
    ],
)
def test_quantities_are_read_into_base_units(text: str, kind: str, value: float) -> None:
    assert units.parse_one(text, kind) == pytest.approx(value)


def test_the_unit_tells_the_kind() -> None:
    assert units.parse("0.2 dB", "points", "decibel", "percent") == (0.2, "decibel")
    assert units.parse("1 %", "points", "decibel", "percent") == (1.0, "percent")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("3", "'3' has no unit"), ("fast", "'fast' is not a quantity"), ("3 parsecs", "unknown unit 'parsecs'")],
)
def test_a_missing_or_wrong_unit_is_one_sentence_with_a_hint(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        units.parse_one(text, "size")
    assert sentence in caught.value.message
    assert "MiB" in (caught.value.hint or "") or "3 B" in (caught.value.hint or "")


@given(st.floats(1, 1e12))
def test_a_written_size_reads_back_to_within_its_digits(count: float) -> None:
    assert units.parse_one(units.format_size(count), "size") == pytest.approx(count, rel=0.01, abs=0.5)


@given(st.floats(1e-6, 99))
def test_a_written_time_reads_back_to_within_its_digits(seconds: float) -> None:
    assert units.parse_one(units.format_time(seconds), "time") == pytest.approx(seconds, rel=0.01)


def test_numbers_of_things_agree_with_their_nouns() -> None:
    assert units.number(1, "layer") == "1 layer"
    assert [units.number(count, "bias", "biases") for count in (0, 1, 2)] == [
        "0 biases",
        "1 bias",
        "2 biases",
    ]

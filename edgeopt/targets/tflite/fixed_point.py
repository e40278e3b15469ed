"""Fixed-point arithmetic of TFLite's integer kernels, on numpy arrays of int64 that hold int32 values.

The definitions are those of the TensorFlow Lite 8-bit quantization specification and of gemmlowp's
fixed-point library: a real factor is a 31-bit integer and a power of two, a product is rounded twice.
"""

from __future__ import annotations

import math

import numpy as np

INT32_MAX, INT32_MIN = 2**31 - 1, -(2**31)


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Splits a factor: ``real`` is about multiplier · 2**(shift - 31)."""
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    if shift < -31:
        return 0, 0
    if shift > 30:
        return INT32_MAX, 30
    return multiplier, shift


def truncated(numerator: np.ndarray, denominator: int | np.ndarray) -> np.ndarray:
    """Integer division towards zero, as in C."""
    quotient = np.abs(numerator) // np.abs(denominator)
    return np.asarray(quotient * np.sign(numerator) * np.sign(denominator))


def doubling_high_multiply(a: np.ndarray, b: int | np.ndarray, bits: int = 32) -> np.ndarray:
    """The high half of 2·a·b, rounded half away from zero and saturated."""
    product = np.asarray(a, np.int64) * b
    unit = 1 << (bits - 2)
    nudged = product + np.where(product >= 0, unit, 1 - unit)
    return np.asarray(np.minimum(truncated(nudged, 1 << (bits - 1)), 2 ** (bits - 1) - 1))


def rounding_shift(x: np.ndarray, exponent: int | np.ndarray) -> np.ndarray:
    """x / 2**exponent, rounded half away from zero."""
    mask = (np.int64(1) << np.asarray(exponent, np.int64)) - 1
    threshold = (mask >> 1) + (x < 0)
    return np.asarray((x >> np.asarray(exponent, np.int64)) + ((x & mask) > threshold))


def multiply(x: np.ndarray, multiplier: int | np.ndarray, shift: int | np.ndarray) -> np.ndarray:
    """MultiplyByQuantizedMultiplier: x · multiplier · 2**(shift - 31), rounded twice."""
    left, right = np.maximum(shift, 0), np.maximum(-np.asarray(shift), 0)
    return rounding_shift(doubling_high_multiply(x << np.asarray(left, np.int64), multiplier), right)


def multiply_once(x: np.ndarray, multiplier: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """x · multiplier · 2**(shift - 31), rounded once, halves up."""
    total = 31 - shift
    return np.asarray((x * multiplier + (np.int64(1) << (total - 1))) >> total)


def power_multiply(x: np.ndarray, exponent: int) -> np.ndarray:
    """x · 2**exponent: rounded where negative, saturated where positive."""
    if exponent <= 0:
        return rounding_shift(x, -exponent)
    return np.asarray(np.clip(x << exponent, INT32_MIN, INT32_MAX))


def exp_of_negative(a: np.ndarray, integer_bits: int) -> np.ndarray:
    """exp(a) for a <= 0 with that many integer bits; the result has none."""
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    within = (a & (quarter - 1)) - quarter
    result = _exp_near_zero(power_multiply(within, integer_bits))
    remainder = within - a
    steps = [1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242]
    for exponent, factor in zip(range(-2, 5), steps, strict=True):
        if integer_bits > exponent:
            bit = (remainder >> (fraction_bits + exponent)) & 1
            result = np.where(bit != 0, doubling_high_multiply(result, factor), result)
    return np.where(a == 0, INT32_MAX, result)


def _exp_near_zero(a: np.ndarray) -> np.ndarray:
    """exp(a) for -1/4 <= a < 0, by a Taylor series around -1/8."""
    constant, third = 1895147668, 715827883
    x = a + (1 << 28)
    x2 = doubling_high_multiply(x, x)
    x3 = doubling_high_multiply(x2, x)
    x4 = doubling_high_multiply(x2, x2)
    tail = doubling_high_multiply(rounding_shift(x4, 2) + x3, third) + x2
    return constant + doubling_high_multiply(x + rounding_shift(tail, 1), constant)


def reciprocal(x: int, integer_bits: int) -> tuple[int, int]:
    """1 / x for x > 0 with that many integer bits.

    Returns:
        The reciprocal without integer bits, of x scaled into [1, 2), and that scale's exponent.
    """
    headroom = 32 - int(x).bit_length()
    scaled = ((x << headroom) & 0xFFFFFFFF) - (1 << 31)
    return int(_one_over_one_plus(np.array(scaled, np.int64))), integer_bits - headroom


def _one_over_one_plus(a: np.ndarray) -> np.ndarray:
    """1 / (1 + a) for 0 <= a < 1, by three steps of Newton and Raphson."""
    half = truncated(a + INT32_MAX + 1, 2)
    x = 1515870810 + doubling_high_multiply(half, -1010580540)
    for _ in range(3):
        rest = (1 << 29) - doubling_high_multiply(half, x)
        x = x + power_multiply(doubling_high_multiply(x, rest), 2)
    return power_multiply(x, 1)

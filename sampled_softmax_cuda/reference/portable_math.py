"""log, log1p and expm1 in float64 with the bits of csrc/core/portable_math.h on every device.

Only operations that IEEE 754 rounds correctly, in the order of that header, where the formulas are
explained. Needed where ids depend on the last bit of a logarithm, that is in the exponential race;
log counts use PyTorch's own functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10
_LOG2_E = 1.4426950408889634
_ROUNDER = 1.5 * 2.0**52  # adding it rounds to an integer, kept in the low bits
_ROOT_HALF_BITS = 0x3FE6A09E667F3BCD
_ONE_BITS = 0x3FF0000000000000
_LOG_POLYNOMIAL = (
    0.07308224842521703,
    0.07665860800278021,
    0.09091444562630861,
    0.1111110556739754,
    0.14285714312987743,
    0.19999999999949752,
    0.3333333333333335,
)


def polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Horner's scheme from the highest coefficient, product and sum rounded apart."""
    result = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result


def _log_of_parts(f: Tensor, e: Tensor) -> Tensor:
    """log(2^e (1 + f))"""
    s = f / (f + 2.0)
    z = s * s
    two_s = s + s
    tail = e * _LN2_LOW + two_s * (z * polynomial(_LOG_POLYNOMIAL, z))
    return e * _LN2_HIGH + (two_s + tail)


def _log_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """f and e with x = 2^e (1 + f), 1 + f between sqrt(1/2) and sqrt(2)."""
    bits = x.view(torch.int64)
    biased = (bits + (_ONE_BITS - _ROOT_HALF_BITS)) >> 52
    m = bits - (biased << 52) + _ONE_BITS
    return m.view(torch.float64) - 1.0, biased.to(torch.float64) - 1023.0


def portable_log(x: Tensor) -> Tensor:
    """log of positive normal float64 numbers."""
    return _log_of_parts(*_log_parts(x))


def portable_log1p(x: Tensor) -> Tensor:
    """log(1 + x) of float64 numbers in [-1, 1]; about -709 at -1."""
    f, e = _log_parts(x + 1.0)
    small = (x > -0.25) & (x < 0.25)
    return _log_of_parts(torch.where(small, x, f), torch.where(small, 0.0, e))


_EXPM1_POLYNOMIAL = (
    2.510038549551032e-08,
    2.7620088445409746e-07,
    2.7557268459997064e-06,
    2.4801521295954376e-05,
    0.00019841269863053618,
    0.0013888888917213717,
    0.008333333333330062,
    0.04166666666662413,
    0.16666666666666669,
    0.5000000000000001,
)


def portable_expm1(y: Tensor) -> Tensor:
    """exp(y) - 1 of float64 numbers y <= 0; -1 below -60."""
    y = y.clamp_min(-60.0)
    shifted = y * _LOG2_E + _ROUNDER
    n = shifted - _ROUNDER
    r = (y - n * _LN2_HIGH) - n * _LN2_LOW
    expm1_r = (r * r) * polynomial(_EXPM1_POLYNOMIAL, r) + r
    scale = ((shifted.view(torch.int64) << 52) + _ONE_BITS).view(torch.float64)
    return scale * expm1_r + (scale - 1.0)

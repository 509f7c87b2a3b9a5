"""The distributions that classes are drawn from, in PyTorch.

A draw is a function of 64 random bits, for which it gives exactly the class that the compiled
kernels give. The formulas, and why they are written the way they are, stand in csrc/core:
uniform.h, log_uniform.h, alias_table.h.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .._philox import mul_wide
from .._rules import may_look
from ..proposals import Kind, Proposal
from .alias_table import alias_of, check_aliases
from .portable_math import polynomial, portable_log, portable_log1p

_FRACTION_BITS = 58  # of the fixed-point log2
_EXP2_TABLE = (
    1.0,
    1.0442737824274138,
    1.0905077326652577,
    1.1387886347566916,
    1.189207115002721,
    1.241857812073484,
    1.2968395546510096,
    1.3542555469368927,
    1.4142135623730951,
    1.4768261459394993,
    1.5422108254079407,
    1.6104903319492543,
    1.681792830507429,
    1.7562521603732995,
    1.8340080864093424,
    1.9152065613971474,
)
_EXP2_POLYNOMIAL = (
    9.35342561605361e-12,
    1.2713928266076342e-09,
    1.4676110416779805e-07,
    1.3550807755820948e-05,
    0.0009383847928110174,
    0.04332169878499655,
)


class Distribution(Protocol):
    """A distribution over the classes 0 .. num_classes - 1."""

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""

    def ids(self, bits: Tensor) -> Tensor:
        """The classes drawn by 64 random bits each, int64 to int64."""

    def probability(self, ids: Tensor) -> Tensor:
        """q of ids in [0, C), float64."""


class Uniform(NamedTuple):
    """q = 1 / C."""

    num_classes: int

    def ids(self, bits: Tensor) -> Tensor:
        return mul_wide(bits, self.num_classes)[0]

    def probability(self, ids: Tensor) -> Tensor:
        return torch.full(ids.shape, 1.0 / self.num_classes, dtype=torch.float64, device=ids.device)


def log2_fixed(n: int) -> int:
    """floor(2^58 log2(n)) up to the last two bits, in the integers of csrc/core/log_uniform.h."""
    exponent = n.bit_length() - 1
    n <<= 63 - exponent
    result = exponent
    for _ in range(_FRACTION_BITS):
        square = n * n
        carry = square >> 127
        n = square >> (63 + carry)
        result = (result << 1) | carry
    return result


class LogUniform(NamedTuple):
    """q_k = log((k + 2) / (k + 1)) / log(C + 1), for classes sorted by falling frequency."""

    num_classes: int

    def ids(self, bits: Tensor) -> Tensor:
        y = mul_wide(bits, log2_fixed(self.num_classes + 1))[0]
        whole = (y >> _FRACTION_BITS) & 63
        table = torch.tensor(_EXP2_TABLE, dtype=torch.float64, device=bits.device)
        base = table[(y >> (_FRACTION_BITS - 4)) & 15]
        t = ((y >> 2) & (2**52 - 1)).to(torch.float64) * 2.0**-52
        power = base * (t * polynomial(_EXP2_POLYNOMIAL, t)) + base
        k_plus_1 = (power * 2.0**52).to(torch.int64) >> (52 - whole)
        return k_plus_1.clamp(max=self.num_classes) - 1

    def probability(self, ids: Tensor) -> Tensor:
        end = torch.tensor(self.num_classes + 1, dtype=torch.float64, device=ids.device)
        return portable_log1p(1.0 / (ids.to(torch.float64) + 1.0)) * (1.0 / portable_log(end))


class Weighted(NamedTuple):
    """Any distribution, by its alias table and the bits of its float64 probabilities, int64 [C]."""

    table: Tensor
    probability_bits: Tensor

    @property
    def num_classes(self) -> int:
        return self.table.shape[0]

    def ids(self, bits: Tensor) -> Tensor:
        bucket, place = mul_wide(bits, self.num_classes)
        entry = self.table[bucket]
        alias = alias_of(entry, self.num_classes)
        sign = torch.iinfo(torch.int64).min  # flipping it makes signed comparison unsigned
        drawn = torch.where((place ^ sign) < ((entry - alias) ^ sign), bucket, alias)
        beyond = drawn >= self.num_classes
        if may_look(drawn) and bool(beyond.any()):
            check_aliases(self.table)
        return drawn.masked_fill(beyond, -1)  # an id that nothing follows

    def probability(self, ids: Tensor) -> Tensor:
        return self.probability_bits[ids].view(torch.float64)


def distribution(proposal: Proposal) -> Uniform | LogUniform | Weighted:
    """A proposal with its formulas."""
    if proposal.table is not None and proposal.probability_bits is not None:
        return Weighted(proposal.table, proposal.probability_bits)
    if proposal.kind == Kind.UNIFORM:
        return Uniform(proposal.num_classes)
    return LogUniform(proposal.num_classes)

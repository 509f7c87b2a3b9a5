"""Draws of class ids in PyTorch: for the same key exactly the ids of the compiled kernels.

The formulas, and why they are written the way they are, stand in csrc/core: uniform.h,
log_uniform.h, alias_table.h, logit_correction.h.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .._philox import mul_wide, philox_bits
from .._rules import may_look
from ..proposals import Kind, Method, Proposal
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

# Classes among which an alias table's rounding errors are carried on
# (csrc/cpu/sample/alias_table.cpp).
_ALIAS_CHUNK = 1 << 14


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
        alias = _alias_of(entry, self.num_classes)
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


def _alias_of(entries: Tensor, num_classes: int) -> Tensor:
    """The classes that entries of an alias table stand for beside their own."""
    return entries & ((1 << num_classes.bit_length()) - 1)


def check_aliases(table: Tensor) -> None:
    """IndexError if an entry of an alias table [C] stands for a class outside [0, C).

    A pass over all C: for errors that the kernels have met, which look at the ids that they draw.
    """
    num_classes = table.shape[0]
    alias = _alias_of(table, num_classes)
    bad = (alias >= num_classes).nonzero()
    if bad.numel() == 0:
        return
    first = int(bad[0])
    raise IndexError(
        f"the sampler's alias table is not valid: its entry {first} stands for class"
        f" {int(alias[first])}, which must be in [0, C={num_classes}). Memory that was never filled"
        " (the meta device, to_empty) is no table, nor is an average of tables: build the sampler"
        " anew, or fill it by update(weights) or load_state_dict"
    )


def build_alias_table(probabilities: Tensor) -> Tensor:
    """The alias table of csrc/core/alias_table.h, int64 [C] on the CPU.

    A Python loop over the classes, a microsecond or so for each.

    Args:
        probabilities: float64 [C] >= 0 that sum to 1 up to rounding.
    """
    q = probabilities.tolist()
    num_classes = len(q)
    bits = num_classes.bit_length()
    bucket = 1 << (64 - bits)
    weights = _integer_weights(q, bucket)
    smalls = iter([k for k in range(num_classes) if weights[k] < bucket])
    larges = [k for k in range(num_classes) if weights[k] >= bucket]
    entries = [0] * num_classes
    given = 0
    for large, following in zip(larges, [*larges[1:], None], strict=True):
        left = weights[large] - given
        while left > bucket:
            small = next(smalls)
            entries[small] = (weights[small] << bits) | large
            left -= bucket - weights[small]
        full = left == bucket or following is None
        entries[large] = large if following is None or full else (left << bits) | following
        given = 0 if full else bucket - left
    signed = [entry - (1 << 64) if entry >> 63 else entry for entry in entries]
    return torch.tensor(signed, dtype=torch.int64)


def _integer_weights(q: list[float], bucket: int) -> list[int]:
    """Probabilities in units of which a bucket has `bucket`, and all of them C * bucket."""
    scale = float(len(q)) * float(bucket)
    weights = [0] * len(q)
    for k, probability in enumerate(q):
        if k % _ALIAS_CHUNK == 0:
            carry = 0.0
        if probability == 0.0:
            continue
        wanted = probability * scale + carry
        weights[k] = max(round(wanted), 1)
        carry = wanted - weights[k]
    largest = max(range(len(q)), key=weights.__getitem__)
    weights[largest] += len(q) * bucket - sum(weights)
    return weights


def log_expected_count(
    q: Tensor, num_samples: int, tries: Tensor | None, log_zero: float = -math.inf
) -> Tensor:
    """log n of classes of probability q (float64): log(S q), or log(-expm1(t log1p(-q))).

    NaN for what is no probability.

    Args:
        log_zero: what it is for q = 0; 0 where it is to correct a logit.
    """
    if tries is None:
        log_count = q.log() + math.log(num_samples)
    else:
        log_count = (-torch.expm1(tries * torch.log1p(-q))).log()
    log_count = torch.where((q > 0) & (q < 2), log_count, math.nan)
    return torch.where(q == 0, log_zero, log_count)


def log_counts(proposal: Proposal, ids: Tensor, num_samples: int, tries: Tensor | None) -> Tensor:
    """log n of any ids, float32; 0 for an id outside [0, C), -inf for a class with q = 0."""
    return _log_counts(distribution(proposal), ids, num_samples, tries, -math.inf)


def _log_counts(
    q: Distribution, ids: Tensor, num_samples: int, tries: Tensor | None, log_zero: float
) -> Tensor:
    valid = (ids >= 0) & (ids < q.num_classes)
    of_ids = q.probability(torch.where(valid, ids, 0))
    count = log_expected_count(of_ids, num_samples, tries, log_zero)
    return torch.where(valid, count, 0.0).to(torch.float32)


def arrival_time(bits: Tensor, q: Tensor) -> Tensor:
    """When classes of probability q first arrive in an exponential race, by 64 random bits each.

    Infinite for q = 0 and for what is no probability.
    """
    u = (((bits >> 12) & (2**52 - 1)).to(torch.float64) + 0.5) * 2.0**-52
    return torch.where(q > 0, -portable_log(u) / q, math.inf)


def _first_distinct(stream: Tensor) -> Tensor:
    """Positions of the first occurrence of each id of a stream, in rising order."""
    ids, which = torch.unique(stream, return_inverse=True)
    position = torch.arange(stream.shape[0], device=stream.device)
    first = torch.full_like(ids, stream.shape[0])
    return first.scatter_reduce(0, which, position, "amin").sort().values


def most_distinct_draws(num_classes: int) -> float:
    """After how many draws a search for distinct classes ends, as in csrc/core/rejection.h."""
    return 1e6 + 1e3 * num_classes


def sample_distinct(proposal: Distribution, key: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """The first distinct ids of the stream [S], and the number of draws they took []."""
    length = 2 * num_samples + 16
    most = most_distinct_draws(proposal.num_classes)
    while length < 2 * most:
        stream = proposal.ids(philox_bits(key, 0, length))
        first = _first_distinct(stream)
        if first.shape[0] >= num_samples:
            return stream[first[:num_samples]], first[num_samples - 1] + 1
        length *= 2
    raise RuntimeError(
        f"sample: {num_samples} distinct classes were not found in a thousand draws per class: the"
        " proposal does not draw its classes by their probabilities"
    )


# How many draws it takes depends on what they are, which no graph can hold: under torch.compile the
# search is one operator.
@torch.library.custom_op("sampled_softmax::reference_distinct", mutates_args=())
def _distinct_op(
    key: Tensor, num_samples: int, kind: str, num_classes: int, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    proposal: Distribution = Weighted(table, table) if table is not None else Uniform(num_classes)
    if kind == LogUniform.__name__:
        proposal = LogUniform(num_classes)
    return sample_distinct(proposal, key, num_samples)


@_distinct_op.register_fake
def _(
    key: Tensor, num_samples: int, kind: str, num_classes: int, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    return key.new_empty(num_samples), key.new_empty(())


def _traced_distinct(
    proposal: Uniform | LogUniform | Weighted, key: Tensor, num_samples: int
) -> tuple[Tensor, Tensor]:
    table = proposal.table if isinstance(proposal, Weighted) else None
    kind = type(proposal).__name__
    found: tuple[Tensor, Tensor] = _distinct_op(key, num_samples, kind, proposal.num_classes, table)
    return found


def sample_race(proposal: Distribution, key: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """The S classes of the smallest E_k / q_k [S], and what stands for the number of draws []."""
    classes = torch.arange(proposal.num_classes, device=key.device)
    bits = philox_bits(key, 0, proposal.num_classes)
    time, order = arrival_time(bits, proposal.probability(classes)).sort(stable=True)
    draws = time[num_samples - 1].clamp(max=2.0**62).ceil().to(torch.int64)
    return order[:num_samples], draws.clamp(min=num_samples)


def sample(
    proposal: Proposal,
    key: Tensor,
    target: Tensor,
    num_samples: int,
    method: int,
    tries: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The twin of the operator `sample`, but for draws of single rows.

    Args:
        proposal: what to draw from.
        key: int64 [2], (seed, offset).
        target: int64 of any shape.
        num_samples: S.
        method: a `Method`.
        tries: float64 [], the t of the expected counts without replacement; None: as observed.

    Returns:
        ids [S] int64, number of draws [] int64, log n of the ids [S] and of the targets, float32,
        as corrections: 0 for a class that is never drawn.
    """
    q = distribution(proposal)
    if method == Method.WITH_REPLACEMENT:
        ids = q.ids(philox_bits(key, 0, num_samples))
        draws = torch.full((), num_samples, dtype=torch.int64, device=key.device)
    else:
        distinct = _traced_distinct if torch.compiler.is_compiling() else sample_distinct
        find = distinct if method == Method.DISTINCT else sample_race
        ids, draws = find(q, key, num_samples)
        tries = draws.to(torch.float64) if tries is None else tries
    return (
        ids,
        draws,
        _log_counts(q, ids, num_samples, tries, 0.0),
        _log_counts(q, target, num_samples, tries, 0.0),
    )

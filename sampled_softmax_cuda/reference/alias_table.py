"""The alias table of csrc/core/alias_table.h in PyTorch: how it is built, read and checked."""

from __future__ import annotations

import torch
from torch import Tensor

# Classes among which an alias table's rounding errors are carried on
# (csrc/cpu/sample/alias_table.cpp).
_ALIAS_CHUNK = 1 << 14


def alias_of(entries: Tensor, num_classes: int) -> Tensor:
    """The classes that entries of an alias table stand for beside their own."""
    return entries & ((1 << num_classes.bit_length()) - 1)


def check_aliases(table: Tensor) -> None:
    """IndexError if an entry of an alias table [C] stands for a class outside [0, C).

    A pass over all C: for errors that the kernels have met, which look at the ids that they draw.
    """
    num_classes = table.shape[0]
    alias = alias_of(table, num_classes)
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

"""What a `StreamingSampler` knows of the targets it has seen: counts, or hashed intervals.

Both are made of integer buffers, which no `.half()` of a surrounding module rounds, are updated by
operations whose shapes depend on no value (nothing waits for a GPU), and merge over processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from ..reference.philox import mul_wide
from .weighted import WeightedSampler

# Odd multipliers of a 64-bit finaliser (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
# Generators", 2014) and the golden ratio that separates its streams, as the int64 of their bits.
_MIX = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_GOLDEN = -0x61C8864680B583EB


def _all_reduce(tensor: Tensor, op: Any, group: Any) -> Tensor:
    distributed.all_reduce(tensor, op, group)
    return tensor


class CountedStream(nn.Module):
    """Counts that start at 1 each, and the alias table of the counts that they were at some time.

    The table is built anew for the first draw at which the targets since the last time exceed
    `staleness` times the total of then; not before, so that a step that was drawn and has not gone
    backward yet finds the table that it was drawn from. The total is never below C, so an O(C)
    build is paid for by at least staleness * C targets; and since only that share of the total is
    new, the two distributions differ by at most staleness / (1 + staleness) in total variation.
    """

    counts: Tensor
    total: Tensor
    pending: Tensor
    merged: Tensor | None

    def __init__(self, num_classes: int, staleness: float) -> None:
        super().__init__()
        self.staleness = staleness
        self.register_buffer("counts", torch.ones(num_classes, dtype=torch.int64))
        self.register_buffer("total", torch.tensor(num_classes))
        self.register_buffer("pending", torch.zeros((), dtype=torch.int64))
        # The counts after the last `sync`: what processes have added since is the difference.
        self.register_buffer("merged", None)
        self.table = WeightedSampler(self.counts)
        self._read_back()

    def update(self, ids: Tensor, valid: Tensor) -> None:
        """Count ids [N] where valid."""
        one = valid.to(torch.int64)
        self.counts.index_add_(0, torch.where(valid, ids, 0), one)
        self.total.add_(one.sum())
        self.pending.add_(ids.numel())
        if not torch.compiler.is_compiling():
            self._pending += ids.numel()  # on the host, so that nothing has to be waited for

    def due(self) -> bool:
        """Whether the next draw should have another table; no graph can hold the building."""
        if torch.compiler.is_compiling():
            return False
        return self._pending > self.staleness * self._table_total

    def rebuild(self) -> None:
        """Draw from the counts as they are now."""
        self.table.update(self.counts)
        self.pending.zero_()
        self._read_back()

    def log_prob(self, ids: Tensor) -> Tensor:
        return (self.counts[ids].to(torch.float64) / self.total).log().to(torch.float32)

    def sync(self, group: Any) -> None:
        """All that any process has counted, in every process."""
        base = torch.ones_like(self.counts) if self.merged is None else self.merged
        added = _all_reduce(self.counts - base, distributed.ReduceOp.SUM, group)
        self.counts.copy_(base + added)
        self.merged = self.counts.clone()
        self.total.copy_(self.counts.sum())
        self.rebuild()

    def _read_back(self) -> None:
        """Pending targets and the table's total as Python numbers."""
        self._pending = int(self.pending)
        self._table_total = int(self.total) - self._pending

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        there = prefix + "merged" in state_dict
        if there != (self.merged is not None):
            self.merged = torch.empty_like(self.counts) if there else None
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._read_back()


class IntervalStream(nn.Module):
    """A moving estimate of the number of targets between hits, in hashed arrays.

    Method: Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations" (2019), algorithms 2 and 3. For every hash function there are an array A of the
    time of the last hit and an array B of the mean gap between hits; a hit at time t does
    B += rate (t - A - B), A = t, and q = 1 / max of B over the hash functions, since a collision
    makes gaps shorter. Two things differ:

    - time is counted in targets, not in batches: q is the probability of a target, whatever the
      size of the batches, and a bucket with c hits in one batch takes c gaps of (t - A) / c;
    - the first 1 / rate hits are averaged (a step of 1 / hits), so that B forgets its start; a
      bucket that was never hit counts as if it were now.
    """

    hits: Tensor
    last: Tensor
    gap_bits: Tensor
    seen: Tensor
    seen_elsewhere: Tensor

    def __init__(self, num_buckets: int, num_hashes: int, rate: float) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.num_hashes = num_hashes
        self.rate = rate
        # The last bucket takes what does not count.
        for name in ("hits", "last", "gap_bits"):
            empty = torch.zeros(num_buckets * num_hashes + 1, dtype=torch.int64)
            self.register_buffer(name, empty)
        for name in ("seen", "seen_elsewhere"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def update(self, ids: Tensor, valid: Tensor) -> None:
        """The targets ids [N] where valid, as hits at one time."""
        slots = torch.where(valid, self._slots(ids), self.hits.numel() - 1).flatten()
        self.seen.add_(valid.sum())
        before = self.hits[slots]
        self.hits.index_add_(0, slots, torch.ones_like(slots))
        c = (self.hits[slots] - before).to(torch.float64)
        gap = self._gap()
        observed = (self.seen - self.last[slots]).to(torch.float64) / c
        step = torch.maximum(c / (before + c), 1 - (1 - self.rate) ** c)
        # Entries of one bucket all write the same number.
        gap.scatter_(0, slots, torch.lerp(gap[slots], observed, step))
        self.last.scatter_(0, slots, self.seen.expand_as(slots))

    def log_prob(self, ids: Tensor) -> Tensor:
        slots = self._slots(ids.reshape(-1))
        never = (self.seen + self.seen_elsewhere + 1).to(torch.float64)
        gap = torch.where(self.hits[slots] > 0, self._gap()[slots], never)
        return -gap.amax(dim=0).clamp(min=1).log().to(torch.float32).view(ids.shape)

    def sync(self, group: Any) -> None:
        """Gaps averaged over the processes, by the number of hits that each remembers."""
        weight = self.hits.to(torch.float64).clamp(max=1 / self.rate)
        gap = self._gap()
        total = _all_reduce(weight * gap, distributed.ReduceOp.SUM, group)
        _all_reduce(weight, distributed.ReduceOp.SUM, group)
        gap.copy_(torch.where(weight > 0, total / weight, 0.0))
        _all_reduce(self.hits, distributed.ReduceOp.MAX, group)
        seen = _all_reduce(self.seen.clone(), distributed.ReduceOp.SUM, group)
        self.seen_elsewhere.copy_(seen - self.seen)

    def _gap(self) -> Tensor:
        return self.gap_bits.view(torch.float64)

    def _slots(self, ids: Tensor) -> Tensor:
        """The buckets [num_hashes, N] of ids [N]."""
        which = torch.arange(self.num_hashes, device=ids.device)[:, None]
        x = ids + (which + 1) * _GOLDEN
        for shift, multiplier in zip((30, 27), _MIX, strict=True):
            x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * multiplier
        x = x ^ ((x >> 31) & ((1 << 33) - 1))
        return mul_wide(x, self.num_buckets)[0] + which * self.num_buckets

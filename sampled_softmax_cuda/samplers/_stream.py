"""The memory of a `StreamingSampler`: counts of the targets it has seen, or hashed intervals.

Both are made of integers, which no `.half()` of a surrounding module rounds, are updated by
operations whose shapes depend on no value (nothing waits for a GPU), and merge over processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from .._philox import mul_wide
from ._state import Stateful, lasting
from .weighted import WeightedSampler

# Odd multipliers of a 64-bit finaliser (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
# Generators", 2014) and the golden ratio that separates its streams, as the int64 of their bits.
_MIX = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_GOLDEN = -0x61C8864680B583EB

_ROUNDING = 1e-9  # of a distance between two distributions


def _all_reduce(tensor: Tensor, op: Any, group: Any) -> Tensor:
    distributed.all_reduce(tensor, op, group)
    return tensor


def _check_alike(base: Tensor, group: Any) -> None:
    """RuntimeError unless all processes start from the same counts."""
    place = torch.arange(1, base.numel() + 1, device=base.device)
    marks = torch.stack((torch.tensor(base.numel(), device=base.device), (base * place).sum()))
    most = _all_reduce(torch.cat((marks, -marks)), distributed.ReduceOp.MAX, group)
    if not torch.equal(most[:2], -most[2:]):
        raise RuntimeError(
            "StreamingSampler.sync: the processes' samplers don't start from the same counts: build"
            " them alike, and load the same checkpoint in every process or in none"
        )


class CountedStream(Stateful):
    """Counts that start at 1 each, and the alias table of the counts that they were at some time.

    The table is built anew for the first draw at which the targets since the last time exceed
    `staleness` times the total of then; not before, so that a step that was drawn and has not gone
    backward yet finds the table that it was drawn from. The total is never below C, so an O(C)
    build is paid for by at least staleness * C targets; and since only that share of the total is
    new, the two distributions differ by at most staleness / (1 + staleness) in total variation.
    """

    _STATE = ("counts", "total", "pending", "merged")
    _OPTIONAL = frozenset({"merged"})

    counts: Tensor
    total: Tensor
    pending: Tensor
    merged: Tensor | None
    """The counts after the last `sync`: what processes have added since is the difference."""

    def __init__(
        self, num_classes: int, staleness: float, padding_idx: int | None, persistent: bool
    ) -> None:
        super().__init__()
        self.staleness = staleness
        device = torch.get_default_device()
        self.padding_idx = padding_idx
        ones = self._initial_counts(num_classes, torch.device("cpu"))
        total = num_classes - (padding_idx is not None)
        self._set_state(
            device,
            persistent,
            counts=ones,
            total=torch.tensor(total, device="cpu"),
            pending=torch.zeros((), dtype=torch.int64, device="cpu"),
            merged=None,
        )
        self.table = WeightedSampler(ones, persistent=persistent).to(device)
        # Pending targets and the table's total as Python numbers, which nothing has to wait for.
        self._pending = 0
        self._table_total = total
        self._table_in_doubt = False
        self._stamp()

    def _initial_counts(self, num_classes: int, device: torch.device) -> Tensor:
        """1 for every class but the padding."""
        ones = torch.ones(num_classes, dtype=torch.int64, device=device)
        if self.padding_idx is not None:
            ones[self.padding_idx] = 0
        return ones

    def update(self, ids: Tensor, valid: Tensor) -> None:
        """Count ids [N] where valid."""
        known = not torch.compiler.is_compiling() and self._unchanged()
        one = valid.to(torch.int64)
        self.counts.index_add_(0, torch.where(valid, ids, 0), one)
        self.total.add_(one.sum())
        self.pending.add_(ids.numel())
        if known:
            self._pending += ids.numel()
            self._stamp()

    def due(self) -> bool:
        """Whether the next draw should have another table; no graph can hold the building."""
        if torch.compiler.is_compiling():
            return False
        if not (self._unchanged() and self.table._unchanged()):
            self._settle()
            self._table_in_doubt = True
        if self._table_in_doubt:
            self._table_in_doubt = False
            if not self._table_is_close():
                return True
        return self._pending > self.staleness * self._table_total

    def rebuild(self) -> None:
        """Draw from the counts as they are now."""
        self._settle()
        with lasting():
            self.table.update(self._known("counts"))
            self._overwrite(pending=torch.zeros_like(self.pending))
        self._table_total = int(self._known("total"))
        self._pending = 0
        self._table_in_doubt = False
        self._stamp()

    def log_prob(self, ids: Tensor) -> Tensor:
        self._settle()
        return (self.counts[ids].to(torch.float64) / self.total).log().to(torch.float32)

    def sync(self, group: Any) -> None:
        """All that any process has counted, in every process."""
        with lasting():
            base = self.merged
            if base is None:
                base = self._initial_counts(self.counts.shape[0], self.counts.device)
            _check_alike(base, group)
            added = _all_reduce(self.counts - base, distributed.ReduceOp.SUM, group)
            self.counts.copy_(base + added)
            self._place("merged", self.counts.clone(), self.counts.device)
        self.rebuild()

    def _table_is_close(self) -> bool:
        """Whether the table is one, and as near to the counts as `staleness` promises."""
        with lasting():
            try:
                self.table._settle()
            except RuntimeError:
                return False  # the counts know better
            counts = self._known("counts").to(torch.float64)
            q = self.table._known("probability_bits").view(torch.float64)
            distance = (counts / counts.sum() - q).abs().sum() / 2
            return float(distance) <= self.staleness / (1 + self.staleness) + _ROUNDING

    def _derive(self, values: Mapping[str, Any]) -> dict[str, Any]:
        counts, merged = values["counts"], values["merged"]
        if merged is not None and merged.shape != counts.shape:
            raise ValueError(f"merged must be {list(counts.shape)}, got {list(merged.shape)}")
        facts = torch.stack((counts.min(), counts.sum(), values["pending"]))
        least, total, pending = facts.tolist()
        if least < 0 or total <= 0:
            raise ValueError(
                "counts must not be negative and have a positive sum, got a least one of"
                f" {least} and a sum of {total}"
            )
        if pending < 0:
            raise ValueError(f"pending must not be negative, got {pending}")
        return {"_pending": pending, "_table_total": total - pending}

    def _state_changed(self) -> None:
        self._overwrite(total=torch.full_like(self.total, self._table_total + self._pending))
        self._table_in_doubt = True
        self._stamp()


class IntervalStream(Stateful):
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

    _STATE = ("hits", "last", "gap_bits", "seen", "seen_elsewhere")

    hits: Tensor
    last: Tensor
    gap_bits: Tensor
    seen: Tensor
    seen_elsewhere: Tensor

    def __init__(self, num_buckets: int, num_hashes: int, rate: float, persistent: bool) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.num_hashes = num_hashes
        self.rate = rate
        # The last bucket takes targets that do not count.
        sizes = dict.fromkeys(("hits", "last", "gap_bits"), (num_buckets * num_hashes + 1,))
        zeros = {
            name: torch.zeros(sizes.get(name, ()), dtype=torch.int64, device="cpu")
            for name in self._STATE
        }
        self._set_state(torch.get_default_device(), persistent, **zeros)

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
        with lasting():
            self._merge(group)

    def _merge(self, group: Any) -> None:
        weight = self.hits.to(torch.float64).clamp(max=1 / self.rate)
        gap = self._gap()
        total = _all_reduce(weight * gap, distributed.ReduceOp.SUM, group)
        _all_reduce(weight, distributed.ReduceOp.SUM, group)
        gap.copy_(torch.where(weight > 0, total / weight, 0.0))
        _all_reduce(self.hits, distributed.ReduceOp.MAX, group)
        seen = _all_reduce(self.seen.clone(), distributed.ReduceOp.SUM, group)
        self.seen_elsewhere.copy_(seen - self.seen)

    def _derive(self, values: Mapping[str, Any]) -> dict[str, Any]:
        gap = values["gap_bits"].view(torch.float64)
        if not bool((torch.isfinite(gap) & (gap >= 0) & (values["hits"] >= 0)).all()):
            raise ValueError("gaps must be finite, and neither they nor hits may be negative")
        return {}

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

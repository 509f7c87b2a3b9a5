"""Counts the bytes that this rank hands to torch.distributed's collectives, by what is exchanged.

Counted is what a rank sends with the usual ring algorithms, n being the bytes of its tensor:

    all-gather       (R - 1) n          n of the rank's own part
    reduce-scatter   (R - 1) n          n of the part that is left
    all-reduce       2 (R - 1) / R n
    all-to-all       what goes to other ranks

On the wire a backend may do otherwise; gloo's all-reduce of small tensors, for example. With ranks
as threads of one process each thread counts its own.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor, distributed

from sampled_softmax_cuda.distributed import ranks as ranks_module


class Traffic(threading.local):
    """Bytes sent and collectives called by this thread, by kind of collective."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def clear(self) -> None:
        self.bytes.clear()
        self.calls.clear()

    def add(self, kind: str, sent: float) -> None:
        self.bytes[kind] += round(sent)
        self.calls[kind] += 1

    @property
    def total(self) -> int:
        """All bytes sent."""
        return self.bytes.total()


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()


@contextmanager
def counted() -> Iterator[Traffic]:
    """Counts all collectives of `sampled_softmax_cuda.distributed`, in all threads."""
    traffic = Traffic()

    def wrap(kind: str, collective: Any, sent: Any) -> Any:
        def call(out: Tensor, *args: Any, **options: Any) -> Any:
            group = options.get("group")
            traffic.add(kind, sent(distributed.get_world_size(group), group, out, *args))
            return collective(out, *args, **options)

        return call

    def own_part(size: int, group: Any, out: Tensor, x: Tensor) -> float:
        return (size - 1) * min(_size(out), _size(x))

    def both_ways(size: int, group: Any, x: Tensor, *_: Any) -> float:
        return 2 * (size - 1) / size * _size(x)

    def to_others(size: int, group: Any, out: Tensor, x: Tensor, _: Any, give: Any) -> float:
        if not x.shape[0]:
            return 0.0
        return (sum(give) - give[distributed.get_rank(group)]) * _size(x) / x.shape[0]

    def to_all(size: int, group: Any, x: Tensor, *_: Any) -> float:
        return _size(x) if distributed.get_rank(group) == 0 else 0.0

    ours, torchs = ranks_module, distributed
    patches = [
        (ours, "_all_gather", "all-gather", own_part),
        (ours, "_reduce_scatter", "reduce-scatter", own_part),
        (torchs, "all_reduce", "all-reduce", both_ways),
        (torchs, "all_to_all_single", "all-to-all", to_others),
        (torchs, "broadcast", "broadcast", to_all),
    ]
    with (
        mock.patch.multiple(
            ours,
            **{n: wrap(kind, getattr(m, n), sent) for m, n, kind, sent in patches if m is ours},
        ),
        mock.patch.multiple(
            torchs,
            **{n: wrap(kind, getattr(m, n), sent) for m, n, kind, sent in patches if m is torchs},
        ),
    ):
        yield traffic

"""A step that begins before its input is there: negatives drawn, and rows on their way."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .drawn import Drawn
from .fetch import Fetching


@dataclass(frozen=True)
class Prefetched:
    """A step that has begun: the forward pass goes on from it."""

    target: Tensor
    """A copy of the targets that it is for."""
    drawn: Drawn
    fetching: Fetching | None
    """None where no rows travel ahead, but input rows with the loss."""
    tables: tuple[Tensor, ...]
    """The parameters that rows were taken from."""
    revision: int
    """That of a sharded sampler, which may be asked for counts in the forward pass."""
    quiet: bool
    """Whether no header said that ranks agree."""
    contents: list[tuple[Any, ...]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "contents", contents(self.tables))

    def forget(self) -> None:
        """Wait for what is on its way, since its memory goes."""
        if self.fetching is None:
            return
        waits = (*self.fetching.rows, self.fetching.log_count_of, self.fetching.class_weight)
        with suppress(RuntimeError):  # a rank that has stopped is the next exchange's error
            for wait in waits:
                if wait is not None:
                    wait()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # a copy has other parameters: nothing is on its way to them

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def check(
        self, fn: str, target: Any, tables: tuple[Tensor, ...], revision: int, generator: Any
    ) -> None:
        """ValueError unless a forward pass is the one that was prefetched."""
        if generator is not None:
            raise ValueError(
                f"{fn}: generator must be given to prefetch, which has drawn the negatives, and not"
                " to the forward pass behind it"
            )
        if not (isinstance(target, Tensor) and same_values(target, self.target)):
            raise ValueError(
                f"{fn}: target must be the one that was prefetched, {list(self.target.shape)}, got"
                f" {'another' if isinstance(target, Tensor) else type(target).__name__}"
                f" {list(getattr(target, 'shape', []))}: call the head with that one, or"
                " prefetch(None) to forget it"
            )
        if revision != self.revision:
            raise ValueError(
                f"{fn}: the sampler was updated between prefetch and the forward pass, whose"
                " negatives are from before: call update ahead of prefetch"
            )
        known = zip(tables, self.tables, strict=True)
        if any(new is not old for new, old in known) or contents(tables) != self.contents:
            raise ValueError(
                f"{fn}: the parameters have changed since prefetch, whose rows are old: call"
                " prefetch after optimizer.step(), load_state_dict and to()"
            )


def contents(tables: tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
    """Facts that change once the tensors are written, or their `data` is exchanged, as by
    `module.to(dtype)` or for the averages of an EMA: that leaves the version as it is."""
    return [(x._version, x.data_ptr(), x.dtype, x.device) for x in tables]


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, on one device."""
    return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)


def stand_in(target: Any, num_true: int | None, weight: Tensor) -> Tensor:
    """In place of the input [*, D] for targets that are there before it; takes no memory.

    Args:
        target: [*], or [*, T] with num_true=T; whatever it is, its checks come later.
    """
    shape = target.shape if isinstance(target, Tensor) else torch.Size([0])
    if num_true is not None:
        shape = shape[:-1]
    return weight.detach().new_empty(1).expand(*shape, weight.shape[1])


def check_prefetch(
    fn: str, target: Any, num_true: int | None, training: bool, there: Prefetched | None
) -> None:
    """ValueError for what can't be prefetched."""
    if not training:
        raise ValueError(f"{fn}: prefetch is for training: the exact loss draws no negatives")
    if there is not None:
        raise ValueError(
            f"{fn}: prefetch was called twice: call the head in between, or prefetch(None) to"
            " forget the first"
        )
    last = target.shape[-1] if isinstance(target, Tensor) and target.dim() > 0 else None
    if num_true is not None and last != num_true:
        raise ValueError(
            f"{fn}: prefetch: target must be [*, num_true={num_true}], got"
            f" {list(getattr(target, 'shape', []))}"
        )

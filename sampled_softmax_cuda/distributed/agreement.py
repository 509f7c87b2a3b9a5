"""A small exchange ahead of the large ones, so that an error of one rank is an error of all.

Without it a rank that raises leaves the others waiting in their next collective until the timeout,
half an hour by default.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from .ranks import Ranks

_FACTS = 4
_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (IndexError, TypeError, ValueError, NotImplementedError)
}


class _Place(NamedTuple):
    """Where a rank is, and why it may have stopped: exchanged when ranks disagree."""

    number: int
    phase: str
    error: tuple[str, str] | None
    """(type, text)"""
    options: dict[str, str]


class Agreement:
    """Lets all ranks of the class group, and of its replicas, go on together or stop together.

    Args:
        ranks: the ranks that share the classes.
        replicas: the ranks that own the same classes in other groups, or a process alone.
    """

    def __init__(self, ranks: Ranks, replicas: Ranks) -> None:
        self.ranks, self.replicas = ranks, replicas
        self.number = 0

    @property
    def needed(self) -> bool:
        """Whether there are other ranks at all."""
        return self.ranks.size > 1 or self.replicas.size > 1

    def open(
        self,
        phase: str,
        device: torch.device,
        error: Exception | None = None,
        facts: Sequence[int] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Tell all ranks where this one is, and hear where they are.

        Args:
            phase: the step that comes, which must be the same on all ranks.
            device: that of the exchange.
            error: why this rank can't go on, or None.
            facts: up to 4 numbers for the others.
            options: by name, what must be the same on all ranks.

        Returns:
            The facts of all ranks, int64 [R_replica, R, 4] on the CPU.

        Raises:
            IndexError, TypeError, ValueError, RuntimeError: that of the first rank that can't go
                on, or what differs between ranks; the same on every rank.
        """
        self.number += 1
        if not self.needed:
            if error is not None:
                raise error
            return torch.tensor([[[*facts, *[0] * (_FACTS - len(facts))]]])
        options = options or {}
        checksum = 0 if error is not None else zlib.crc32(repr(options).encode())
        mine = [self.number, zlib.crc32(phase.encode()), error is not None, checksum, *facts]
        mine += [0] * (4 + _FACTS - len(mine))
        table = self.ranks.gather(torch.tensor(mine, device=device), f"headers ({phase})")
        table = self.replicas.gather(table, f"headers of replicas ({phase})").cpu()
        heads = table[:, :, :4]
        if bool(heads[:, :, 2].any()) or not bool((heads == heads[0, 0]).all()):
            self._explain(phase, error, options)
        return table[:, :, 4:]

    def _explain(self, phase: str, error: Exception | None, options: Mapping[str, Any]) -> NoReturn:
        """Exchange what happened, and raise the same on every rank."""
        told = None if error is None else (type(error).__name__, str(error))
        shown = {name: repr(value) for name, value in options.items()}
        places = self.replicas.gather_objects(
            self.ranks.gather_objects(_Place(self.number, phase, told, shown))
        )
        everyone = [place for group in places for place in group]
        self.number = max(place.number for place in everyone)  # so that all can go on from here
        for rank, place in enumerate(everyone):
            if place.error is not None:
                kind, text = place.error
                mine = rank == self.replicas.rank * self.ranks.size + self.ranks.rank
                raise _ERRORS.get(kind, RuntimeError)(
                    f"{text} (on rank {rank} of {len(everyone)})"
                ) from (error if mine else None)
        first = everyone[0]
        for rank, place in enumerate(everyone):
            if (place.number, place.phase) != (first.number, first.phase):
                raise RuntimeError(
                    "sampled_softmax_cuda.distributed: ranks are at different places: rank 0 is at"
                    f" exchange {first.number}, {first.phase}, and rank {rank} at exchange"
                    f" {place.number}, {place.phase}: every rank must call the head, and run its"
                    " backward pass, equally often; a rank that skips a batch can pass one with no"
                    " rows"
                )
        for rank, place in enumerate(everyone):
            for name in {**first.options, **place.options}:
                here, there = first.options.get(name), place.options.get(name)
                if here != there:
                    raise ValueError(
                        f"sampled_softmax_cuda.distributed: {name} must be the same on all ranks,"
                        f" got {here} on rank 0 and {there} on rank {rank}"
                    )
        raise RuntimeError("sampled_softmax_cuda.distributed: the checksums of ranks differ")

"""A group of ranks and the collectives that the sharded losses use: the one place that calls them.

Each takes tensors whose rows may differ in number between ranks, gives an error that says which
exchange failed, and costs nothing where there is one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ReduceOp
from torch.distributed.device_mesh import DeviceMesh

# Their names before torch 2.13.
_all_gather = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)
_reduce_scatter = getattr(distributed, "reduce_scatter_single", distributed.reduce_scatter_tensor)

Wait = Callable[[], Tensor]
"""Waits for what is on its way, and returns it."""


@contextmanager
def _named(exchange: str) -> Iterator[None]:
    """An error of a collective, with what was exchanged."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"sampled_softmax_cuda.distributed: the {exchange} failed, which happens when another"
            f" rank has stopped: look at its output first. torch says: {error}"
        ) from error


@dataclass(frozen=True)
class Ranks:
    """The ranks of a process group, or this process alone."""

    group: Any
    rank: int
    size: int
    mesh: DeviceMesh | None = None

    @staticmethod
    def of_group(group: Any, mesh: DeviceMesh | None = None) -> Ranks:
        """The ranks of a group that this process is in."""
        rank = distributed.get_rank(group)
        if rank < 0:
            raise ValueError(
                "sampled_softmax_cuda.distributed: this process is not in the group of its mesh"
            )
        return Ranks(group, rank, distributed.get_world_size(group), mesh)

    def device_mesh(self, device_type: str) -> DeviceMesh | None:
        """The mesh, made from the group where none was given; None for a process alone."""
        if self.mesh is not None or self.group is None:
            return self.mesh
        return DeviceMesh.from_group(self.group, device_type)

    @property
    def device(self) -> torch.device:
        """A device on which the group can exchange tensors."""
        if self.group is None:
            return torch.device("cpu")
        kinds = [device.type for device in self.group._device_types] or ["cpu"]
        if "cpu" in kinds:
            return torch.device("cpu")
        return torch.device(kinds[0], getattr(torch, kinds[0]).current_device())

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self

    def __getstate__(self) -> dict[str, Any]:
        if self.group is not None:
            raise TypeError(
                "sampled_softmax_cuda.distributed: a process group can't be pickled, and so neither"
                " can a head on its ranks: save head.state_dict() and load it into a new head, or"
                " use copy.deepcopy inside the process"
            )
        return self.__dict__.copy()

    # --- collectives ------------------------------------------------------------------------------

    def gather(self, values: Tensor, what: str) -> Tensor:
        """The same-shaped tensors of all ranks, [R, ...]."""
        if self.size == 1:
            return values[None]
        out = values.new_empty((self.size, *values.shape))
        with _named(f"all-gather of {what}"):
            _all_gather(out, values.contiguous()[None], group=self.group)
        return out

    def gather_objects(self, value: Any) -> list[Any]:
        """Python objects of all ranks, by pickle: only on the way to an error, or once."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _named("all-gather of objects"):
            distributed.all_gather_object(values, value, group=self.group)
        return values

    def gather_rows(self, x: Tensor, sizes: Sequence[int], what: str) -> Tensor:
        """The rows [sizes[r], ...] of all ranks, one after the other."""
        if self.size == 1:
            return x
        most = max(sizes)
        if most == 0:
            return x
        if min(sizes) == most:
            return self.gather(x, what).flatten(0, 1)
        padded = x.new_zeros((most, *x.shape[1:]))
        padded[: x.shape[0]] = x
        return torch.cat([r[:n] for r, n in zip(self.gather(padded, what), sizes, strict=True)])

    def scatter_sum(self, x: Tensor, sizes: Sequence[int], what: str) -> Tensor:
        """The sum over ranks of this rank's rows of x, which has those of all, as `gather_rows`."""
        if self.size == 1:
            return x
        most = max(sizes)
        if most == 0:
            return x
        if min(sizes) != most:
            padded = x.new_zeros((self.size, most, *x.shape[1:]))
            for to, part in zip(padded, torch.split(x, list(sizes)), strict=True):
                to[: part.shape[0]] = part
            x = padded.flatten(0, 1)
        out = x.new_empty((most, *x.shape[1:]))
        with _named(f"reduce-scatter of {what}"):
            _reduce_scatter(out, x.contiguous(), group=self.group)
        return out[: sizes[self.rank]]

    def all_reduce(self, x: Tensor, what: str, op: Any = ReduceOp.SUM) -> Tensor:
        """The sum, or another reduction, over ranks, in a new tensor."""
        if self.size == 1:
            return x
        out = x.clone(memory_format=torch.contiguous_format)
        with _named(f"all-reduce of {what}"):
            distributed.all_reduce(out, op, group=self.group)
        return out

    def broadcast(self, x: Tensor, what: str, source: int = 0) -> Tensor:
        """The tensor of rank `source`, in place."""
        if self.size > 1:
            with _named(f"broadcast of {what}"):
                distributed.broadcast(x, group=self.group, group_src=source)
        return x

    def exchange(self, x: Tensor, give: Sequence[int], take: Sequence[int], what: str) -> Wait:
        """Begin to send rows of x, the first give[0] to rank 0 and so on.

        Returns:
            A function that waits for the rows of the others, take[r] from rank r, and returns them.
        """
        if self.size == 1:
            return lambda: x
        x = x.contiguous()
        out = x.new_empty((sum(take), *x.shape[1:]))
        with _named(f"all-to-all of {what}"):
            work = distributed.all_to_all_single(
                out, x, list(take), list(give), group=self.group, async_op=True
            )

        def wait() -> Tensor:
            with _named(f"all-to-all of {what}"):
                if work is not None:
                    work.wait()
            return out

        return wait


ALONE = Ranks(None, 0, 1)

"""Where classes live: which rank owns the row of a class."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh

from .._arguments import check_int64, describe
from ..samplers.base import check_num_classes
from .agreement import Agreement
from .ranks import ALONE, Ranks

ClassOrder = Literal["spread", "contiguous"]

_GOLDEN = (math.sqrt(5) - 1) / 2
_NAME = "ClassShard"

# row_of multiplies a class by the multiplier, or by its inverse, in int64.
_MOST_SPREAD = 3_000_000_000


class ClassShard:
    """The rows of a class matrix [C, D] that this rank owns, of all ranks of a mesh.

    Row `multiplier · k mod C` belongs to class k, and each rank has ceil(C / R) rows in a row, the
    last ones fewer or none: DTensor's `Shard(0)`. In "spread" order the multiplier is near 0.618 C,
    so that classes of similar ids, such as the frequent ones of a sorted vocabulary, go to
    different ranks. It depends on C alone: a checkpoint fits any number of ranks.

    Args:
        num_classes: C; at most 3·10^9 in spread order.
        mesh: a DeviceMesh of one dimension, a ProcessGroup, or None (default): all processes, or
            this one alone where torch.distributed is not initialised.
        order: "spread" (default), or "contiguous": row k is class k, which leaves most samples of
            a proposal for sorted classes to rank 0.

    Raises:
        ValueError, TypeError: arguments that are not as above.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> shard = ssc.distributed.ClassShard(10)
        >>> shard.row_of(torch.tensor([0, 1, 2])), shard.num_rows
        (tensor([0, 7, 4]), 10)
        >>> shard.class_of(torch.tensor([0, 7, 4]))
        tensor([0, 1, 2])
    """

    def __init__(
        self,
        num_classes: int,
        mesh: DeviceMesh | distributed.ProcessGroup | None = None,
        *,
        order: ClassOrder = "spread",
    ) -> None:
        self.num_classes = check_num_classes(_NAME, num_classes, 2**62)
        if order not in ("spread", "contiguous"):
            raise ValueError(f"{_NAME}: order must be 'spread' or 'contiguous', got {order!r}")
        if order == "spread" and self.num_classes > _MOST_SPREAD:
            raise ValueError(
                f"{_NAME}: order='spread' takes at most {_MOST_SPREAD} classes, got"
                f" num_classes={num_classes}: use order='contiguous'"
            )
        self.order = order
        self.multiplier = _multiplier(self.num_classes) if order == "spread" else 1
        self._inverse = pow(self.multiplier, -1, self.num_classes) if self.num_classes > 1 else 0
        self.ranks = as_ranks(_NAME, "mesh", mesh)
        self.rows_per_rank = -(-self.num_classes // self.ranks.size)
        self.begin, self.end = self.rows_of_rank(self.ranks.rank)
        self.agreement = Agreement(self.ranks, ALONE)

    @property
    def num_rows(self) -> int:
        """How many rows this rank owns."""
        return self.end - self.begin

    @property
    def classes(self) -> Tensor:
        """The classes of this rank's rows, int64 [num_rows] on the CPU."""
        return self.class_of(torch.arange(self.begin, self.end, device="cpu"))

    def rows_of_rank(self, rank: int) -> tuple[int, int]:
        """The first row of a rank, and the one behind its last."""
        begin = min(rank * self.rows_per_rank, self.num_classes)
        return begin, min(begin + self.rows_per_rank, self.num_classes)

    def row_of(self, ids: Tensor) -> Tensor:
        """The rows of int64 classes in [0, C), int64 of their shape, counted over all ranks."""
        check_int64(f"{_NAME}.row_of", "ids", ids)  # narrower ones would overflow
        return ids if self.multiplier == 1 else ids * self.multiplier % self.num_classes

    def class_of(self, rows: Tensor) -> Tensor:
        """The classes of int64 rows in [0, C), int64 of their shape."""
        check_int64(f"{_NAME}.class_of", "rows", rows)
        return rows if self.multiplier == 1 else rows * self._inverse % self.num_classes

    def owner_of(self, ids: Tensor) -> Tensor:
        """The ranks that own int64 classes in [0, C), int64 of their shape."""
        return self.row_of(ids) // self.rows_per_rank

    def local_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows as indices of this rank's own, 0 for those of others, and which are its own."""
        own = (rows >= self.begin) & (rows < self.end)
        return torch.where(own, rows - self.begin, 0), own

    def __repr__(self) -> str:
        return (
            f"{_NAME}(num_classes={self.num_classes}, order={self.order!r}, rank"
            f" {self.ranks.rank} of {self.ranks.size} with rows [{self.begin}, {self.end}))"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> ClassShard:
        return self  # nothing of it changes, and a process group can't be copied


def _multiplier(num_classes: int) -> int:
    """Near 0.618 C and coprime to C: multiples of it lie as evenly as those of any number."""
    candidate = max(1, round(num_classes * _GOLDEN))
    while math.gcd(candidate, num_classes) != 1:
        candidate += 1
    return candidate


def misplaced(fn: str, ranks: Ranks, replicas: Ranks) -> ValueError | None:
    """The error of replicas that own other classes than this rank, or None; collective."""
    place = torch.tensor([ranks.rank, ranks.size], device=ranks.device)
    places = replicas.gather(place, "places of replicas").tolist()
    if all(other == places[0] for other in places):
        return None
    found = ", ".join(f"{rank} of {size}" for rank, size in places)
    return ValueError(
        f"{fn}: the ranks of a replica_mesh must own the same classes, and these are ranks {found}"
        " of their meshes: pass the two dimensions of one mesh of replicas x classes, such as"
        " mesh=mesh['class'], replica_mesh=mesh['replica']"
    )


def as_ranks(fn: str, name: str, mesh: Any) -> Ranks:
    """The ranks of a mesh of one dimension, of a group, or of all processes."""
    if mesh is None:
        if not (distributed.is_available() and distributed.is_initialized()):
            return ALONE
        return Ranks.of_group(distributed.group.WORLD)
    if mesh is distributed.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"{fn}: {name} is a group without this process: make the head on the ranks of the group"
            " alone"
        )
    if isinstance(mesh, DeviceMesh):
        if mesh.ndim != 1:
            raise ValueError(
                f"{fn}: {name} must have one dimension, got a mesh of shape {tuple(mesh.shape)}"
                f" with dimensions {mesh.mesh_dim_names}: pass one of them, such as"
                " mesh['class']"
            )
        return Ranks.of_group(mesh.get_group(), mesh)
    if isinstance(mesh, distributed.ProcessGroup):
        return Ranks.of_group(mesh)
    raise TypeError(
        f"{fn}: {name} must be a DeviceMesh of one dimension, a ProcessGroup or None, got"
        f" {describe(mesh)}"
    )

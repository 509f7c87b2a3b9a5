"""State dicts of heads whose rows lie on several ranks, for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from .owners import OwnsShards
from .shard import ClassShard

_NAME = "ShardedSampledSoftmaxLoss"

MULTIPLIER = "row_multiplier"
"""The name of `ClassShard.multiplier` in a state_dict: in which order the rows are."""
_DRAWS = "draws"
"""The name of [seed, number of steps]."""

# The rows of a full matrix that are exchanged at a time.
_CHUNK_ROWS = 1 << 16


def as_dtensor(local: Tensor, shard: ClassShard) -> Tensor:
    """Rows [C_r, ...] of this rank as a DTensor [C, ...], `Shard(0)`; without a process group, as
    they are."""
    mesh = shard.ranks.device_mesh(local.device.type)
    if mesh is None:
        return local
    shape = torch.Size([shard.num_classes, *local.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def own_rows_of(name: str, value: Tensor, shard: ClassShard, by_class: bool) -> Tensor:
    """This rank's rows of a value of a state_dict.

    Args:
        name: the value's key, for messages.
        value: a DTensor [C, ...], or a plain tensor of all rows.
        by_class: whether a plain tensor has row k for class k, or the rows as they lie on ranks.

    Raises:
        ValueError: another number of rows, or a DTensor that lies otherwise.
    """
    if value.dim() == 0 or value.shape[0] != shard.num_classes:
        raise ValueError(
            f"{name} must have C={shard.num_classes} rows, those of all ranks, got"
            f" {list(value.shape)}: a file that each rank saved for itself fits no other number of"
            " ranks; save state_dict() by torch.distributed.checkpoint"
        )
    if isinstance(value, DTensor):
        if tuple(value.placements) != (Shard(0),) or value.device_mesh.size() != shard.ranks.size:
            if all(isinstance(p, Replicate) for p in value.placements):
                return own_rows_of(name, value.to_local(), shard, by_class)
            raise ValueError(
                f"{name} must be a DTensor Shard(0) over {shard.ranks.size} ranks, got"
                f" {value.placements} over {value.device_mesh.size()}: load it by"
                " torch.distributed.checkpoint into this head's state_dict()"
            )
        return value.to_local()
    if by_class:
        return value[shard.classes.to(value.device)]
    return value[shard.begin : shard.end]


def other_order(multiplier: int, shard: ClassShard) -> str:
    """The error of rows that lie in another order than those of a shard."""
    return (
        f"its rows are in another order, of row_multiplier={multiplier} and not"
        f" {shard.multiplier}: build the head with the class_order it was saved with"
    )


def rows_of_all(local: Tensor, shard: ClassShard, name: str, keep: bool) -> Tensor | None:
    """The rows [C, ...] of all ranks in the order of the classes, on the CPU; collective.

    Args:
        local: this rank's rows [C_r, ...].
        name: for messages.
        keep: whether this rank gets them; None otherwise.
    """
    ranks, full = shard.ranks, None
    if keep:
        shape = (shard.num_classes, *local.shape[1:])
        full = torch.empty(shape, dtype=local.dtype, device="cpu")
    for begin in range(0, shard.rows_per_rank, _CHUNK_ROWS):
        ends = [
            min(begin + _CHUNK_ROWS, last - first)
            for first, last in map(shard.rows_of_rank, range(ranks.size))
        ]
        sizes = [max(0, end - begin) for end in ends]
        part = ranks.gather_rows(local[begin : begin + sizes[ranks.rank]], sizes, name)
        if full is None:
            continue
        firsts = [shard.rows_of_rank(r)[0] + begin for r in range(ranks.size)]
        rows = torch.cat([torch.arange(f, f + n) for f, n in zip(firsts, sizes, strict=True)])
        full[shard.class_of(rows)] = part.cpu()
    return full


class SavesShards(OwnsShards):
    """The state_dict of a head on several ranks: `weight` and `bias` are DTensors [C, D] and [C],
    `Shard(0)`, whose rows lie in the order of `ClassShard`; `row_multiplier` says in which, and
    `draws` is the seed and the number of steps.

    torch.distributed.checkpoint saves it and loads it into any number of ranks. `load_state_dict`
    also takes plain tensors of all rows in the order of the classes, such as those of
    `SampledSoftmaxLoss` and nn.Linear; each rank copies its own.
    """

    shard: ClassShard
    weight: nn.Parameter
    _seed: int
    _step: int

    # torch.distributed.checkpoint looks for every name of a state_dict among the attributes.

    @property
    def row_multiplier(self) -> Tensor:
        """In which order rows lie: `ClassShard.multiplier`, int64 []."""
        return torch.tensor(self.shard.multiplier, device="cpu")

    @property
    def draws(self) -> Tensor:
        """The seed and the number of steps, int64 [2]."""
        return torch.tensor([self._seed, self._step], device="cpu")

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """As nn.Module's, and these two: torch.distributed.checkpoint asks the module itself which
        names a rank has, before it hands on what the first rank has loaded."""
        yield from super().named_buffers(prefix, recurse, remove_duplicate)
        device = "cpu" if self.weight.is_meta else self.weight.device
        for name, value in ((MULTIPLIER, self.row_multiplier), (_DRAWS, self.draws)):
            yield f"{prefix}.{name}" if prefix else name, value.to(device)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("weight", "bias"):
            local = destination.get(prefix + name)
            if local is not None:
                destination[prefix + name] = as_dtensor(local.detach(), self.shard)
        destination[prefix + MULTIPLIER] = self.row_multiplier
        destination[prefix + _DRAWS] = self.draws

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = dict(state_dict)
        multiplier = own.pop(prefix + MULTIPLIER, None)
        draws = own.pop(prefix + _DRAWS, None)
        try:
            if multiplier is not None and int(multiplier) != self.shard.multiplier:
                raise ValueError(other_order(int(multiplier), self.shard))
            for name in ("weight", "bias"):
                value = own.get(prefix + name)
                if isinstance(value, Tensor):
                    own[prefix + name] = own_rows_of(name, value, self.shard, multiplier is None)
        except ValueError as error:
            error_msgs.append(f'While loading "{prefix[:-1]}" ({_NAME}): {error}')
            return
        before = len(error_msgs)
        super()._load_from_state_dict(
            own, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        ours = (prefix + MULTIPLIER, prefix + _DRAWS)
        unexpected_keys[:] = [key for key in unexpected_keys if key not in ours]
        if draws is not None and len(error_msgs) == before:
            self._seed, self._step = (int(x) for x in draws)

    def load_full_state_dict(self, state_dict: Mapping[str, Any], *, strict: bool = True) -> Any:
        """Load plain tensors of all classes in their order, such as `SampledSoftmaxLoss` or
        nn.Linear has them; each rank copies its own rows.

        A file that `torch.load(path, mmap=True)` opens is never read whole.

        Args:
            state_dict: weight [C, D], bias [C], and what else the head has.
            strict: as in `nn.Module.load_state_dict`.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> head = ssc.distributed.ShardedSampledSoftmaxLoss(16, 1000, 64)
            >>> head.load_full_state_dict(torch.nn.Linear(16, 1000).state_dict())
            <All keys matched successfully>
        """
        plain = {k: v for k, v in state_dict.items() if k not in (MULTIPLIER, _DRAWS)}
        return self.load_state_dict(plain, strict=strict)

    def full_state_dict(self, *, on_all_ranks: bool = False) -> dict[str, Tensor]:
        """The weight [C, D] and the bias [C] of all classes in their order, on the CPU; collective.

        Args:
            on_all_ranks: whether all ranks get it, or the first one alone (default), and the others
                an empty dictionary: it takes the memory of all classes.

        Returns:
            A state_dict that `SampledSoftmaxLoss` and nn.Linear load.
        """
        shard, ranks = self.shard, self.layout.ranks
        keep = on_all_ranks or (ranks.rank == 0 and self.layout.replicas.rank == 0)
        state = self.state_dict()
        result: dict[str, Tensor] = {}
        for name in ("weight", "bias"):
            if name not in state:
                continue
            value = state[name]
            local = value.to_local() if isinstance(value, DTensor) else value
            full = rows_of_all(local, shard, name, keep)
            if full is not None:
                result[name] = full
        return result

"""A head of one process made into one over ranks, where it stands in its model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ParallelStyle

from .._arguments import describe
from ..modules import SampledSoftmaxLoss
from .call import Algorithm, InputLayout
from .modules import ShardedSampledSoftmaxLoss
from .owners import announce
from .shard import ClassOrder

_NAME = "distributed.ClassParallel"

# The options of a head that its attributes have.
_OPTIONS = (
    "in_features", "num_classes", "num_samples", "sampler", "replacement", "inclusion", "per_row",
    "objective", "temperature", "correction", "remove_accidental_hits", "softcap", "cosine",
    "z_loss", "ignore_index", "padding_idx", "class_weight", "reduction", "sparse_grad",
)  # fmt: skip

# The rows of a full matrix that are sent at a time.
_CHUNK_ROWS = 1 << 16


class ClassParallel(ParallelStyle):
    """Makes a `SampledSoftmaxLoss` a `ShardedSampledSoftmaxLoss` with the same options, in place.

    For `torch.distributed.tensor.parallel.parallelize_module`, before an optimizer is made and
    before `fully_shard`. Every rank keeps its rows of the weight and the bias that the first rank
    of the mesh has (`src_data_rank=` of `parallelize_module`; None: its own). A head on the meta
    device stays there, until `to_empty(device=...)` and `reset_parameters()`.

    Args:
        replica_mesh, algorithm, class_order, input_layout, gradient_divide_factor, static_batch,
            seed: as in `ShardedSampledSoftmaxLoss`, with its defaults. After a tensor-parallel
            backbone all ranks have the same rows: input_layout="replicated" shares the work.

    Raises:
        TypeError, ValueError: by `parallelize_module`, for a module that is no
            `SampledSoftmaxLoss`, a weight that another module has too, or one that is a DTensor.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> style = ssc.distributed.ClassParallel(input_layout="replicated")
        >>> plan = {"head": style}  # parallelize_module(model, mesh["class"], plan)
    """

    def __init__(
        self,
        *,
        replica_mesh: DeviceMesh | distributed.ProcessGroup | None = None,
        algorithm: Algorithm = "auto",
        class_order: ClassOrder = "spread",
        input_layout: InputLayout = "sharded",
        gradient_divide_factor: float | None = None,
        static_batch: bool = False,
        seed: int | None = None,
    ) -> None:
        self._layout: dict[str, Any] = {
            "replica_mesh": replica_mesh,
            "algorithm": algorithm,
            "class_order": class_order,
            "input_layout": input_layout,
            "gradient_divide_factor": gradient_divide_factor,
            "static_batch": static_batch,
            "seed": seed,
        }

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if type(module) is not SampledSoftmaxLoss:
            raise TypeError(
                f"{_NAME}: the module must be a SampledSoftmaxLoss, got {describe(module)}: name"
                " the head in the plan"
            )
        if isinstance(module.weight, DTensor):
            raise TypeError(
                f"{_NAME}: the head's weight is a DTensor already: use parallelize_module before"
                " fully_shard, and give that ignored_params=set(head.parameters())"
            )
        if module._tied:
            raise ValueError(
                f"{_NAME}: the head's weight was given to it, and whoever has it too needs all of"
                " its rows: use a head with a weight of its own"
            )
        head = ShardedSampledSoftmaxLoss(
            mesh=device_mesh,
            bias=module.bias is not None,
            device=module.weight.device,
            dtype=module.weight.dtype,
            **{name: getattr(module, name) for name in _OPTIONS},
            **self._layout,
        )
        for own, full in _pairs(head, module):
            own.requires_grad_(full.requires_grad)
            if not full.is_meta:
                _take_rows(own, full, head, self.src_data_rank)
        _become(module, head)
        return module


def _pairs(
    head: ShardedSampledSoftmaxLoss, module: SampledSoftmaxLoss
) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    yield head.weight, module.weight
    if head.bias is not None and module.bias is not None:
        yield head.bias, module.bias


@torch.no_grad()
def _take_rows(
    own: Tensor, full: Tensor, head: ShardedSampledSoftmaxLoss, source: int | None
) -> None:
    """Copy this rank's rows of the classes [C, ...] that the source has."""
    shard, replicas = head.shard, head.layout.replicas
    for begin in range(0, shard.num_classes, _CHUNK_ROWS):
        part = full[begin : begin + _CHUNK_ROWS]
        if source is not None:
            part = shard.ranks.broadcast(part.clone(), "rows of all classes", source)
        ids = torch.arange(begin, begin + part.shape[0], device="cpu")
        rows, here = shard.local_of(shard.row_of(ids))
        here = here.to(full.device)
        own[rows.to(full.device)[here]] = part[here]
    if source is not None:
        replicas.broadcast(own, "rows of replicas")


def _become(module: nn.Module, head: ShardedSampledSoftmaxLoss) -> None:
    """Put a head in the place of a module that others hold, whose hooks and mode stay."""
    kept = {name: value for name, value in vars(module).items() if "_hook" in name}
    kept["training"] = module.training
    state = {**vars(module), **vars(head), **kept}
    module.__dict__.clear()
    module.__class__ = type(head)
    module.__dict__.update(state)
    announce(module)

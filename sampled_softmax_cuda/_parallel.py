"""Row-sparse gradients under torch.distributed: its wrappers are told of them, or an error says why
a wrapper can't take them.

DistributedDataParallel (DDP) fixes when it is made which gradients it expects to be sparse: those
of parameters that it meets first in an `nn.Embedding` with `sparse=True`. For all others it copies
the gradient into a dense bucket, and fails there with "Cannot access storage of SparseTensorImpl".
So a head whose gradients are sparse lists such a module, `SparseRows`, ahead of itself in
`named_modules()`, which is how DDP walks through a model. Other ways were worse: DDP takes no such
setting; to derive the head from `nn.Embedding` would make it one for everybody who asks, from
initialisers to `parallelize_module`; and to replace DDP's method would reach into every model of
the process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.weak import WeakTensorKeyDictionary

_PAGE = "see docs/sparse_gradients.md"


def in_process_group() -> bool:
    """Whether this process has joined a default process group."""
    return distributed.is_available() and distributed.is_initialized()


def active_ddp() -> DistributedDataParallel | None:
    """The DDP module whose forward pass is running."""
    return getattr(DistributedDataParallel, "_active_ddp_module", None)


def is_dtensor(value: Any) -> bool:
    """Whether a value is a DTensor, without an import of what makes them."""
    if type(value) is Tensor or type(value) is nn.Parameter:
        return False
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(value, kind)


def refuse_dtensor(fn: str, name: str, value: Any) -> None:
    """TypeError for a DTensor, whose rows are spread over processes."""
    if not is_dtensor(value):
        return
    raise TypeError(
        f"{fn}: {name} must be a plain tensor, got a DTensor {value.placements}: pass"
        f" {name}.full_tensor(), or .to_local() for this process's part; classes that are spread"
        f" over processes are for ssc.distributed.ShardedSampledSoftmaxLoss; {_PAGE}"
    )


class SparseRows(nn.Embedding):
    """Says of the weight and bias of `owner` that their gradients are sparse.

    It holds no parameters, is registered nowhere and lives as long as somebody looks at it, so it
    has no part in a state_dict, in `.to()`, in copies and in `parameters()`.
    """

    def __init__(self, owner: nn.Module) -> None:
        nn.Module.__init__(self)
        self.sparse = True
        self.padding_idx = self.max_norm = None
        self.norm_type, self.scale_grad_by_freq = 2.0, False
        self._own = {
            name: parameter
            for name, parameter in owner._parameters.items()
            if name in ("weight", "bias") and parameter is not None
        }
        self.num_embeddings, self.embedding_dim = self.weight.shape

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]
        """The owner's, for those who initialise or count what an nn.Embedding has."""
        return self._own["weight"]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The owner's weight and bias. `parameters()` of a whole model doesn't come here."""
        for name, parameter in self._own.items():
            yield f"{prefix}.{name}" if prefix else name, parameter


# The id of the DDP module, or of None, under which a parameter's sparse gradient has been checked.
_checked: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()


def check_sparse_grad(fn: str, weight: Tensor, bias: Tensor | None) -> None:
    """RuntimeError if weight or bias belongs to a wrapper that can't take its row-sparse gradient.

    A parameter is looked for in its wrapper once; afterwards this takes some microseconds, and less
    than one outside of a process group.
    """
    if not in_process_group() or torch.compiler.is_compiling():
        return
    ddp = active_ddp()
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None or not parameter.requires_grad or not parameter.is_leaf:
            continue
        if _checked.get(parameter) == id(ddp):
            continue
        if ddp is not None:
            _check_ddp(fn, name, parameter, ddp)
        _check_fully_shard(fn, name, parameter)
        _checked[parameter] = id(ddp)


def _check_ddp(fn: str, name: str, parameter: Tensor, ddp: DistributedDataParallel) -> None:
    build = getattr(ddp, "_build_params_for_reducer", None)
    if build is None:  # a newer torch, which has to speak for itself
        return
    reduced = {id(own): sparse for own, sparse in zip(*build(), strict=True)}
    if id(parameter) not in reduced:
        return
    if parameter.dtype == torch.float16:
        raise RuntimeError(
            f"{fn}: sparse_grad=True, but under DistributedDataParallel torch adds no sparse"
            f" gradients in float16, and {name} is float16: keep it in float32 or bfloat16"
            f" (autocast makes the input float16), or use sparse_grad=False; {_PAGE}"
        )
    if not reduced[id(parameter)] and not _has_dense_use(ddp, parameter):
        raise RuntimeError(
            f"{fn}: sparse_grad=True, but DistributedDataParallel expects a dense gradient of"
            f" {name}: it asks the first module that holds the parameter, which has to be a"
            " SampledSoftmaxLoss with sparse_grad=True or an nn.Embedding with sparse=True."
            f" Register such a module first, or use sparse_grad=False; {_PAGE}"
        )


def _has_dense_use(model: nn.Module, parameter: Tensor) -> bool:
    """Whether a layer holds `parameter` whose gradient is dense, and with it the sum."""
    return any(
        isinstance(module, (nn.Linear, nn.Embedding, nn.EmbeddingBag))
        and not getattr(module, "sparse", False)
        and any(own is parameter for own in module.parameters(recurse=False))
        for module in model.modules()
    )


def _check_fully_shard(fn: str, name: str, parameter: Tensor) -> None:
    if any(parameter is own for own in _unsharded_parameters()):
        raise RuntimeError(
            f"{fn}: sparse_grad=True, but fully_shard, which reduces dense gradients only, shards"
            f" {name}: use sparse_grad=False, or leave the head out, fully_shard(model,"
            " ignored_params=set(head.parameters())), and take"
            " ssc.distributed.ShardedSampledSoftmaxLoss, or reduce its gradients yourself;"
            f" {_PAGE}"
        )


def _unsharded_parameters() -> Iterator[Any]:
    """The parameters that fully_shard has put in place of its sharded ones for a forward pass."""
    states = sys.modules.get("torch.distributed._composable_state")
    for state in list(getattr(states, "_module_state_mapping", {}).values()):
        groups = getattr(state(), "_fsdp_param_groups", None)
        for group in groups or [getattr(state(), "_fsdp_param_group", None)]:  # torch < 2.12
            for sharded in getattr(group, "fsdp_params", ()):
                yield getattr(sharded, "_unsharded_param", None)

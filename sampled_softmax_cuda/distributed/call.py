"""The arguments of one call of a sharded loss, checked on this rank and agreed on by all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .. import _checks
from .._parallel import active_ddp
from ..losses.rows import compute_dtype, weight_of_rows
from ..objectives import GBCE
from ..options import Options, refuse
from ..samplers.pooled import in_backward_pass
from .agreement import Agreement
from .drawn import Drawn
from .ranks import Ranks
from .shard import ClassShard

Algorithm = Literal["auto", "fetch", "gather"]
InputLayout = Literal["sharded", "replicated"]

ALGORITHMS = ("auto", "fetch", "gather")
INPUT_LAYOUTS = ("sharded", "replicated")


@dataclass(frozen=True)
class Layout:
    """How a head lies over the ranks, and what a trainer does with its gradients."""

    shard: ClassShard
    replicas: Ranks
    """The ranks with the same rows in other groups, or a process alone."""
    agreement: Agreement
    input_layout: str = "sharded"
    divide_factor: float | None = None
    """By what the trainer divides the sum of gradients over ranks; None: their number."""

    @property
    def ranks(self) -> Ranks:
        """The ranks that share the classes."""
        return self.shard.ranks

    @property
    def replicated(self) -> bool:
        """Whether all ranks of a class group have the same input."""
        return self.input_layout == "replicated" and self.ranks.size > 1

    @property
    def divisor(self) -> float:
        """The ranks with rows of their own, or what the user said."""
        if self.divide_factor is not None:
            return self.divide_factor
        return float(self.replicas.size * (1 if self.replicated else self.ranks.size))

    @property
    def average(self) -> float:
        """The factor that makes of the sum of all ranks' gradients of the shard what a trainer
        makes of others'."""
        return 1.0 / self.divisor


@dataclass(frozen=True)
class Batch:
    """The rows of a call."""

    input: Tensor
    """[B, D]"""
    target: Tensor
    """[B, T] classes; ignore_index where there is none."""
    exclude: Tensor | None
    """[B, E]"""
    sample_weight: Tensor | None
    """[B]"""
    leading: torch.Size
    """The shape * of the input [*, D]."""


@dataclass(frozen=True)
class Agreed:
    """The sizes that all ranks know after the header."""

    rows: list[int]
    """Rows of each rank of the class group."""
    replicas_rows: list[int]
    """Rows of each class group; replicated ones count once."""
    counted: int | Tensor
    """Rows that count, over all ranks and replicas; a scalar on the device if no header said."""


@dataclass(frozen=True)
class Asked:
    """The arguments of a sharded loss that are no tensors of a batch."""

    fn: str
    layout: Layout
    options: Options
    algorithm: str = "auto"
    padding_idx: int | None = None
    reduction: str = "mean"
    sparse_grad: bool = False
    want_details: bool = False
    log_prob: bool = False
    """Whether log probabilities of the targets are wanted in place of losses."""

    def same(self, weight: Tensor, bias: Tensor | None, input: Any, target: Any) -> dict[str, Any]:
        """The options that must be the same on all ranks, by name."""
        shard, o = self.layout.shard, self.options
        columns = None
        if isinstance(target, Tensor) and isinstance(input, Tensor):
            columns = target.shape[-1] if target.dim() == input.dim() else 1
        return {
            "loss": "sampled, as in training mode",
            "num_classes": shard.num_classes,
            "class_order": shard.order,
            "weight.shape[1:]": tuple(weight.shape[1:]),
            **_kind("weight", weight),
            **_kind("bias", bias),
            **_kind("input", input),
            "number of targets of a row": columns,
            "algorithm": self.algorithm,
            "input_layout": self.layout.input_layout,
            "gradient_divide_factor": self.layout.divide_factor,
            "reduction": self.reduction,
            "sparse_grad": self.sparse_grad,
            "return_details": self.want_details,
            "padding_idx": self.padding_idx,
            "objective": o.objective,
            "temperature": o.temperature,
            "correction": o.correction,
            "remove_accidental_hits": o.remove_accidental_hits,
            "ignore_index": o.ignore_index,
            "softcap": o.softcap,
            "cosine": o.cosine,
            "z_loss": o.z_loss,
            "grad_enabled": torch.is_grad_enabled(),
        }


def _kind(name: str, tensor: Any) -> dict[str, Any]:
    """The facts of a tensor with rows of a rank's own that must be the same on all ranks."""
    if not isinstance(tensor, Tensor):
        return {name: tensor}
    return {f"{name}.dtype": tensor.dtype, f"{name}.requires_grad": tensor.requires_grad}


@dataclass(frozen=True)
class Call:
    """All that both algorithms compute a loss from, on this rank."""

    asked: Asked
    batch: Batch
    """With replicated input, `gather` takes the rows of all ranks, `fetch` this rank's."""
    agreed: Agreed
    """With replicated input, its rows are how many each rank is responsible for."""
    weight: Tensor
    """[C_r, D], this rank's rows."""
    bias: Tensor | None
    """[C_r]"""
    class_weight: Tensor | None
    """[C_r]"""
    drawn: Drawn

    @property
    def layout(self) -> Layout:
        """How the head lies over the ranks."""
        return self.asked.layout

    @property
    def options(self) -> Options:
        """The options of the loss."""
        return self.asked.options


def check_place(fn: str, weight: Tensor) -> None:
    """RuntimeError where a forward pass of a head with this weight can't be right."""
    if in_backward_pass():
        raise RuntimeError(
            f"{fn}: called again in the backward pass, by a checkpoint of activations: keep the"
            " head outside of it, whose logits are never stored anyway"
        )
    ddp = active_ddp()
    if ddp is not None and any(p is weight for p in ddp.module.parameters()):
        raise RuntimeError(
            f"{fn}: the head must be outside of DistributedDataParallel, which has overwritten the"
            " rows of all ranks with those of rank 0: wrap the backbone alone, and call the head on"
            " its output"
        )


def check_call(
    fn: str,
    shard: ClassShard,
    input: Any,
    weight: Tensor,
    bias: Tensor | None,
    target: Any,
    exclude: Any,
    sample_weight: Any,
    class_weight: Tensor | None,
    options: Options,
    padding_idx: int | None,
) -> Batch:
    """The rows, or the error of what doesn't fit; values of targets are looked at here."""
    num_classes, rows = shard.num_classes, shard.num_rows
    if weight.dim() != 2 or weight.shape[0] != rows:
        raise ValueError(
            f"{fn}: weight must be this rank's rows [{rows}, D], ceil(C / R) of them with"
            f" C={num_classes} and R={shard.ranks.size}, the last ranks fewer or none, got"
            f" {list(weight.shape)}"
        )
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"{fn}: bias must be this rank's [{rows}], got {list(bias.shape)}")
    if class_weight is not None and class_weight.shape != (rows,):
        raise ValueError(
            f"{fn}: class_weight must be this rank's [{rows}], got {list(class_weight.shape)}"
        )
    # The checks of one process, as if all classes were here; the stand-ins take no memory.
    whole = weight.detach().new_empty(1, weight.shape[1]).expand(num_classes, -1)
    offsets = None if bias is None else bias.detach().new_empty(1).expand(num_classes)
    _checks.check_parameters(fn, input, whole, offsets)
    _checks.check_targets(fn, target, input, num_classes)
    if exclude is not None:
        _checks.check_exclude(fn, exclude, input)
        if not options.remove_accidental_hits:
            reason = "to count a target as its own negative and leave others out makes no sense"
            refuse(fn, "exclude", "remove_accidental_hits=False", reason)
    if sample_weight is not None:
        _checks.check_sample_weight(fn, sample_weight, input)
    many = target.dim() == input.dim()
    if many and target.shape[-1] > 1:
        if isinstance(options.objective, GBCE):
            refuse(fn, "a target [*, T]", "objective=GBCE()", "beta is that of a single positive")
        if options.reweighted:
            refuse(fn, "a target [*, T]", "reweighted=True", "it weighs a single class")
        if class_weight is not None:
            reason = "a row has one weight: pass sample_weight"
            refuse(fn, "class_weight", "a target [*, T]", reason)
    num_rows = input.shape[:-1].numel()
    columns = target.reshape(num_rows, target.shape[-1] if many else 1)
    if padding_idx is not None:
        columns = columns.masked_fill(columns == padding_idx, options.ignore_index)
    return Batch(
        input.reshape(num_rows, input.shape[-1]),
        columns,
        None if exclude is None else exclude.reshape(num_rows, exclude.shape[-1]),
        None if sample_weight is None else sample_weight.reshape(-1),
        input.shape[:-1],
    )


def agree(
    fn: str,
    layout: Layout,
    phase: str,
    device: torch.device,
    batch: Batch | None,
    error: Exception | None,
    options: Options,
    same: Mapping[str, Any],
) -> Agreed:
    """Go on with all ranks, or raise the error that one of them has; waits for the device.

    Args:
        batch: None where `error` is why there is none.
        same: what must be the same on all ranks, by name.
    """
    facts = [0, 0, 0]
    if batch is not None:
        facts, problem = _facts(fn, layout, batch, options)
        error = error or problem
    found = layout.agreement.open(phase, device, error, facts, same)
    if layout.replicated and not bool((found == found[:, :1]).all()):
        differ = int((found != found[:, :1]).any(dim=2).nonzero()[0, 1])
        raise ValueError(
            f"{fn}: input_layout='replicated' takes the same rows on all ranks of a class group,"
            f" and those of ranks 0 and {differ} differ: use input_layout='sharded' for rows of"
            " their own"
        )
    own = found[layout.replicas.rank]
    counted = found[:, 0, 1] if layout.replicated else found[:, :, 1]
    rows = found[:, 0, 0] if layout.replicated else found[:, :, 0].sum(dim=1)
    return Agreed(own[:, 0].tolist(), rows.tolist(), int(counted.sum()))


def assumed(fn: str, layout: Layout, batch: Batch, o: Options, known: Agreed) -> Agreed:
    """The result of `agree` for batches that never change their sizes, without waiting.

    Raises:
        ValueError: this rank's has changed.
    """
    expected = known.rows[layout.ranks.rank]
    if batch.target.shape[0] != expected:
        raise ValueError(
            f"{fn}: static_batch=True takes the same number of rows in each step, {expected}, got"
            f" {batch.target.shape[0]}: use static_batch=False"
        )
    counted = (batch.target != o.ignore_index).any(dim=1).sum()
    if not layout.replicated:
        counted = layout.ranks.all_reduce(counted, "numbers of rows")
    counted = layout.replicas.all_reduce(counted, "numbers of rows")
    return Agreed(known.rows, known.replicas_rows, counted)


def _facts(fn: str, layout: Layout, batch: Batch, o: Options) -> tuple[list[int], Exception | None]:
    """How many rows there are and count, with a checksum of replicated ones; a bad target."""
    target = batch.target
    there = target != o.ignore_index
    bad = there & ((target < 0) | (target >= layout.shard.num_classes))
    counted = there.any(dim=1).sum()
    total = torch.where(there, target, 0).sum() if layout.replicated else counted
    numbers = torch.stack((counted, total, bad.any())).tolist()
    facts = [target.shape[0], *numbers[:2]]
    if not numbers[2]:
        return facts, None
    value = int(target[bad][0])
    return facts, IndexError(
        f"{fn}: target must be in [0, C={layout.shard.num_classes}) or"
        f" ignore_index={o.ignore_index}, got {value}"
    )


def row_factor(call: Call, batch: Batch, class_weight: Tensor | None) -> Tensor | None:
    """The factor [B] of each row's loss, None for 1: averaged over ranks as gradients are, the sums
    of "mean" are the mean over the rows of all ranks.

    Args:
        batch: the rows that this rank is responsible for.
        class_weight: [B], of each row's target.
    """
    layout, weight = call.layout, batch.sample_weight
    if class_weight is not None:
        weight = weight_of_rows(weight, class_weight, batch.input)
    if call.asked.reduction != "mean":
        return weight
    dtype = compute_dtype(batch.input)
    total = call.agreed.counted
    if weight is not None:
        weight = weight.to(dtype)
        there = (batch.target != call.options.ignore_index).any(dim=1)
        total = layout.replicas.all_reduce(
            layout.ranks.all_reduce(torch.where(there, weight, 0).sum(), "weights of rows"),
            "weights of rows",
        )
    if isinstance(total, Tensor):
        share = layout.divisor / torch.where(total == 0, 1, total).to(dtype)
    else:
        share = batch.input.new_tensor(layout.divisor / max(total, 1), dtype=dtype)
    return share.expand(batch.target.shape[0]) if weight is None else weight * share

"""A loss to compute: everything that was asked for, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._arguments import as_bool
from .._parallel import check_sparse_grad
from .._sparse_checks import sparse_grad_fits
from .._torchscript import check_not_traced
from ..objectives import GBCE, Softmax
from ..options import REDUCTIONS, Options, checked_options, refuse
from ..samples import KeyedSamples, Samples
from .rows import SampledSoftmaxDetails, reduce_rows, result_dtype, weight_of_rows


class Problem(NamedTuple):
    """The arguments of `sampled_softmax_loss` after all checks; every route takes one."""

    input: Tensor
    """[*, D]"""
    weight: Tensor
    """[C, D]"""
    bias: Tensor | None
    target: Tensor
    """[*] or [*, T]"""
    samples: Samples | KeyedSamples
    exclude: Tensor | None
    """[*, E], classes that are no negatives of the row."""
    row_weight: Tensor | None
    """[B], a factor of each row's loss."""
    options: Options
    reduction: str
    sparse_grad: bool
    want_details: bool = False
    num_classes: int = 0
    """C where the weight has the rows of some classes only; 0: it has all."""

    @property
    def plain(self) -> bool:
        """Whether it is the plain softmax of one true class and of samples that all rows share."""
        return (
            self.options.plain
            and self.exclude is None
            and self.samples.shared
            and (self.target.dim() < self.input.dim() or self.target.shape[-1] == 1)
        )

    def reduce(self, rows: Tensor, counted: Tensor) -> Tensor:
        """The losses of rows [B], weighted and reduced: [] or [B].

        Args:
            counted: [B], which rows have a target.
        """
        return reduce_rows(rows, counted, self.row_weight, self.reduction)


def make_problem(
    fn: str,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    samples: Samples | KeyedSamples,
    bias: Tensor | None = None,
    objective: Any = "softmax",
    temperature: float = 1.0,
    correction: str = "both",
    remove_accidental_hits: bool = True,
    softcap: float | None = None,
    cosine: bool = False,
    z_loss: float = 0.0,
    exclude: Tensor | None = None,
    ignore_index: int = -100,
    padding_idx: int | None = None,
    class_weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    sparse_grad: bool = False,
    return_details: bool = False,
) -> Problem:
    """The problem, or the error of what does not fit; ids are looked at by `check_ids`.

    Args:
        fn: the name of the public function, which opens every message.
        others: those of `sampled_softmax_loss`.
    """
    check_not_traced(fn)
    options = checked_options(
        fn,
        objective,
        temperature,
        correction,
        remove_accidental_hits,
        ignore_index,
        softcap,
        cosine,
        z_loss,
    )
    _checks.check_parameters(fn, input, weight, bias)
    num_classes = weight.shape[0]
    _checks.check_targets(fn, target, input, num_classes)
    _checks.check_samples(fn, samples, target, input, num_classes)
    _checks.check_choice(fn, "reduction", reduction, REDUCTIONS)
    if exclude is not None:
        _checks.check_exclude(fn, exclude, input)
    if sample_weight is not None:
        _checks.check_sample_weight(fn, sample_weight, input)
    if class_weight is not None:
        _checks.check_class_weight(fn, class_weight, weight)
    return_details = as_bool(fn, "return_details", return_details)
    sparse_grad = as_bool(fn, "sparse_grad", sparse_grad) and sparse_grad_fits(
        fn, input, weight, bias
    )
    if sparse_grad:
        check_sparse_grad(fn, weight, bias)
    if exclude is not None or not samples.shared or target.dim() == input.dim():
        _check_together(fn, options, target, input, samples, exclude)
    if padding_idx is not None:
        idx = _checks.check_padding_idx(fn, padding_idx, num_classes)
        target = target.masked_fill(target == idx, options.ignore_index)
        samples, exclude = _without_class(samples, exclude, idx, input)
    row_weight = None if sample_weight is None else sample_weight.reshape(-1)
    if class_weight is not None:
        of_class = _class_weight_of_rows(fn, class_weight, target, input, options)
        row_weight = weight_of_rows(row_weight, of_class, input)
    return Problem(
        input,
        weight,
        bias,
        target,
        samples,
        exclude,
        row_weight,
        options,
        reduction,
        sparse_grad,
        return_details,
    )


def finish(
    p: Problem, result: Tensor, details: Sequence[Tensor]
) -> Tensor | tuple[Tensor, SampledSoftmaxDetails]:
    """The result in its shape and dtype, with lse, target logit and error [*] if they are wanted.

    Args:
        result: [], or [B] with reduction="none".
        details: each [B].
    """
    dtype = result_dtype(p.input, p.weight, p.bias)
    if result.dtype != dtype:
        result = result.to(dtype)
    if p.reduction != "none" and not p.want_details:
        return result
    shape = p.input.shape[:-1]
    if p.reduction == "none":
        result = result.reshape(shape)
    if not p.want_details:
        return result
    return result, SampledSoftmaxDetails(*(row.reshape(shape) for row in details))


def check_ids(fn: str, p: Problem) -> None:
    """IndexError for a target or a sample outside [0, C), where values may be looked at."""
    num_classes = p.weight.shape[0]
    _checks.check_id_range(fn, "target", p.target, num_classes, p.options.ignore_index)
    if isinstance(p.samples, Samples):
        _checks.check_id_range(fn, "samples.ids", p.samples.ids, num_classes)


def check_samples_fit(fn: str, o: Options, shared: bool) -> None:
    """The options go together with samples that rows share, or don't."""
    if shared:
        return
    smoothed = isinstance(o.objective, Softmax) and o.objective.label_smoothing != 0
    for option, on in (("cosine", o.cosine), ("label_smoothing", smoothed)):
        if on:
            reason = "it would gather the rows of all B * S samples; share them by the batch"
            refuse(fn, option, "samples per row", reason)


def _check_together(
    fn: str,
    o: Options,
    target: Tensor,
    input: Tensor,
    samples: Samples | KeyedSamples,
    exclude: Tensor | None,
) -> None:
    """The options go together with the targets, the samples and the excluded classes."""
    check_samples_fit(fn, o, samples.shared)
    if target.dim() == input.dim() and target.shape[-1] > 1:
        if isinstance(o.objective, GBCE):
            refuse(fn, "a target [*, T]", "objective=GBCE()", "beta is that of a single positive")
        if o.reweighted:
            refuse(fn, "a target [*, T]", "reweighted=True", "it weighs a single class")
    if exclude is None:
        return
    if not o.remove_accidental_hits:
        reason = "to count a target as its own negative and leave others out makes no sense"
        refuse(fn, "exclude", "remove_accidental_hits=False", reason)
    if isinstance(o.objective, Softmax) and o.objective.label_smoothing != 0:
        refuse(fn, "label_smoothing", "exclude", "excluded classes would get a share of the label")


def _without_class(
    samples: Samples | KeyedSamples, exclude: Tensor | None, idx: int, input: Tensor
) -> tuple[Samples | KeyedSamples, Tensor | None]:
    """Samples and excluded classes such that the class `idx` is no negative of any row."""
    if isinstance(samples, Samples):
        return samples.without(idx), exclude
    column = samples.key.new_full((*input.shape[:-1], 1), idx)
    return samples, column if exclude is None else torch.cat((exclude, column), dim=-1)


def _class_weight_of_rows(
    fn: str, class_weight: Tensor, target: Tensor, input: Tensor, o: Options
) -> Tensor:
    """The weight [B] of each row's class; some number for rows that do not count."""
    if target.dim() == input.dim() and target.shape[-1] > 1:
        refuse(fn, "class_weight", "a target [*, T]", "a row has one weight: pass sample_weight")
    if isinstance(o.objective, Softmax) and o.objective.label_smoothing != 0:
        reason = "the smoothed part of the label would need the weights of all classes"
        refuse(fn, "class_weight", "label_smoothing", reason)
    return weight_of_targets(class_weight, target.reshape(-1))


def weight_of_targets(class_weight: Tensor, target: Tensor) -> Tensor:
    """class_weight [C] of targets [B]; 0 for a target that is no class."""
    known = (target >= 0) & (target < class_weight.shape[0])
    return torch.where(known, class_weight[torch.where(known, target, 0)], 0)

"""The sampled softmax loss over a class matrix whose rows lie on several ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..losses.rows import SampledSoftmaxDetails
from ..losses.targets import label_smoothing
from ..objectives import Objective, ObjectiveName
from ..options import REDUCTIONS, Correction, Reduction, checked_options, refuse
from ..samples import Samples
from .autograd import announced, own_rows, shared_result
from .call import (
    ALGORITHMS,
    INPUT_LAYOUTS,
    Agreed,
    Algorithm,
    Asked,
    Batch,
    Call,
    InputLayout,
    Layout,
    agree,
    assumed,
    check_call,
)
from .drawn import Drawn, drawn_of
from .fetch import Fetching, begin_fetch, fetch_loss
from .gather import gather_log_prob, gather_loss
from .ranks import ALONE
from .shard import ClassShard

_NAME = "sharded_sampled_softmax_loss"

Draw = Callable[[Batch, Agreed], Drawn]


def agreed_call(
    asked: Asked,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    draw: Draw,
    *,
    bias: Tensor | None,
    class_weight: Tensor | None,
    same: Mapping[str, Any],
    exclude: Tensor | None = None,
    sample_weight: Tensor | None = None,
    check: Callable[[], None] | None = None,
    known: Agreed | None = None,
    phase: str = "forward",
) -> Call:
    """A call that all ranks have checked and go on with.

    Args:
        check: further checks of this rank's arguments.
        draw: the negatives; called when all ranks have agreed to go on.
        same: more that must be the same on all ranks, by name.
        known: the sizes of an earlier call, which are those of this one too; in place of a header.
        phase: the name of the step, for errors.
    """
    fn, layout = asked.fn, asked.layout
    batch, error = None, None
    try:
        batch = check_call(
            fn,
            layout.shard,
            input,
            weight,
            bias,
            target,
            exclude,
            sample_weight,
            class_weight,
            asked.options,
            asked.padding_idx,
        )
        if check is not None:
            check()
    except Exception as problem:
        error = problem
        if known is not None:
            raise
    if known is None:
        options: dict[str, Any] = {}
        if layout.agreement.needed:
            options = {**asked.same(weight, bias, input, target), **same}
            options["exclude"] = exclude is not None
            options["sample_weight"] = sample_weight is not None
        phase = f"{fn}, {phase}"
        agreed = agree(fn, layout, phase, weight.device, batch, error, asked.options, options)
        assert batch is not None
    else:
        assert batch is not None
        agreed = assumed(fn, layout, batch, asked.options, known)
    return Call(asked, batch, agreed, weight, bias, class_weight, draw(batch, agreed))


def begin(call: Call) -> Fetching | None:
    """Let rows travel whose loss is computed later; None where `gather` will compute it."""
    fetch, call = _chosen(call)
    return begin_fetch(call) if fetch else None


def _chosen(call: Call) -> tuple[bool, Call]:
    """Whether `fetch` computes the loss, and from what."""
    fetch = chosen_algorithm(call) == "fetch"
    if call.layout.replicated:
        sizes = split_rows(call.batch.target.shape[0], call.layout.ranks.size)
        call = replace(call, agreed=replace(call.agreed, rows=sizes))
        if fetch:
            call = _own_part(call, sizes)
    return fetch, call


def solve_call(call: Call, announce: bool = True, fetching: Fetching | None = None) -> Any:
    """The loss, and details if they are wanted.

    Args:
        announce: whether a header goes in front of the backward pass.
        fetching: what `begin` has returned for the same targets and negatives, if it was called.
    """
    asked, layout, ranks, leading = call.asked, call.layout, call.layout.ranks, call.batch.leading
    fetch, call = _chosen(call)
    sizes = call.agreed.rows
    if fetch:
        loss, details = fetch_loss(call, fetching)
    else:
        loss, details = gather_log_prob(call) if asked.log_prob else gather_loss(call)
    rowwise = asked.reduction == "none"
    if layout.replicated:
        loss = shared_result(loss, ranks, sizes if rowwise else None)
        if details is not None:
            rows = (ranks.gather_rows(row, sizes, "details") for row in details)
            details = SampledSoftmaxDetails(*rows)
    if announce:
        loss = announced(loss, layout.agreement, f"{asked.fn}, backward")
    if rowwise:
        loss = loss.reshape(leading + loss.shape[1:])
    if details is None:
        return loss
    return loss, SampledSoftmaxDetails(*(row.reshape(leading) for row in details))


def chosen_algorithm(call: Call) -> str:
    """The algorithm that sends less, of those that serve."""
    asked, batch, drawn, agreed = call.asked, call.batch, call.drawn, call.agreed
    smoothed = label_smoothing(asked.options) > 0.0
    per_row = drawn.rows.dim() > 1
    if asked.algorithm == "gather":
        if smoothed:
            reason = "the mean of all logits needs the rows of all samples: use algorithm='fetch'"
            refuse(asked.fn, "algorithm='gather'", "label_smoothing", reason)
        if per_row:
            reason = "every row has others: use algorithm='fetch'"
            refuse(asked.fn, "algorithm='gather'", "samples per row", reason)
        return "gather"
    if asked.algorithm == "fetch" or smoothed or per_row:
        return "fetch"
    if asked.layout.replicated:
        own, everyone = -(-batch.target.shape[0] // asked.layout.ranks.size), batch.target.shape[0]
    else:
        own, everyone = max(agreed.rows), sum(agreed.rows)
    sent = drawn.num_samples + own * batch.target.shape[1]
    return "fetch" if sent < everyone or asked.layout.ranks.size == 1 else "gather"


def split_rows(num_rows: int, parts: int) -> list[int]:
    """The sizes of as many parts, equal but for the last ones."""
    each = -(-num_rows // parts)
    return [max(0, min(each, num_rows - part * each)) for part in range(parts)]


def _own_part(call: Call, sizes: list[int]) -> Call:
    """The rows of a replicated batch that this rank is responsible for."""
    ranks, batch, drawn = call.layout.ranks, call.batch, call.drawn
    begin = sum(sizes[: ranks.rank])
    own = slice(begin, begin + sizes[ranks.rank])

    def part(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[own]

    shared = drawn.rows.dim() == 1
    return replace(
        call,
        batch=Batch(
            own_rows(batch.input, ranks, sizes),
            batch.target[own],
            part(batch.exclude),
            part(batch.sample_weight),
            torch.Size([sizes[ranks.rank]]),
        ),
        drawn=drawn._replace(
            rows=drawn.rows if shared else drawn.rows[own],
            log_count=drawn.log_count if shared else part(drawn.log_count),
            target_log_count=part(drawn.target_log_count),
        ),
    )


def check_layout(fn: str, algorithm: Any, input_layout: Any, divide_factor: Any) -> float | None:
    """gradient_divide_factor as a float or None; ValueError or TypeError for what doesn't fit."""
    _checks.check_choice(fn, "algorithm", algorithm, ALGORITHMS)
    _checks.check_choice(fn, "input_layout", input_layout, INPUT_LAYOUTS)
    if divide_factor is None:
        return None
    return _checks.check_divisor(fn, "gradient_divide_factor", divide_factor, ", or None")


@torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="exchanges between ranks, and the decisions they lead to, stay outside of graphs"
)
def sharded_sampled_softmax_loss(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    samples: Samples,
    *,
    shard: ClassShard,
    bias: Tensor | None = None,
    objective: ObjectiveName | Objective = "softmax",
    temperature: float = 1.0,
    correction: Correction = "both",
    remove_accidental_hits: bool = True,
    softcap: float | None = None,
    cosine: bool = False,
    z_loss: float = 0.0,
    exclude: Tensor | None = None,
    ignore_index: int = -100,
    padding_idx: int | None = None,
    class_weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    sparse_grad: bool = False,
    return_details: bool = False,
    algorithm: Algorithm = "auto",
    input_layout: InputLayout = "sharded",
    gradient_divide_factor: float | None = None,
) -> Any:
    """`sampled_softmax_loss` of a class matrix whose rows lie on the ranks of a shard; collective.

    Every rank passes its own rows of the batch and of the class matrix, and the samples that all
    ranks have drawn alike, from a common key. It behaves as if the matrix were replicated under
    DistributedDataParallel: the average of the ranks' losses and gradients are those of one process
    with all rows, whatever their numbers, and the gradient of `weight` is that average already.

    Args:
        input: [*, D], this rank's rows; their number may differ between ranks and be 0.
        weight: [C_r, D], the rows of this rank's classes, `shard.classes`.
        target: [*] or [*, T] int64 classes in [0, C), of all ranks.
        samples: `Samples` with class ids [S], the same on all ranks, or, with algorithm="fetch",
            any, [*, S] too.
        shard: which classes are whose.
        bias: [C_r], or None.
        class_weight: [C_r] of this rank's classes, or None.
        algorithm: "fetch" sends rows of the matrix to those who need them, "gather" rows of input
            to all; "auto" (default) the one that sends less. Both give the same numbers.
        input_layout: "sharded" (default), or "replicated" if all ranks have the same rows, as after
            a tensor-parallel backbone: then all get the whole loss and the whole gradient of input.
        gradient_divide_factor: by what the trainer divides the sum of gradients over ranks; None
            (default): by their number, as DDP and fully_shard do.
        others: as in `sampled_softmax_loss`, and the same on all ranks; reduction="mean" is over
            the rows of all ranks, "sum" and "none" over this rank's.

    Returns:
        As `sampled_softmax_loss`, of this rank's rows.

    Raises:
        ValueError, TypeError, IndexError: as `sampled_softmax_loss`; on every rank, if one has it.
        RuntimeError: ranks that are at different places, or one that has stopped.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> shard = ssc.distributed.ClassShard(1000)  # one process: all classes
        >>> h, weight = torch.randn(32, 16), torch.randn(shard.num_rows, 16, requires_grad=True)
        >>> target = torch.randint(1000, (32,))
        >>> samples = ssc.LogUniformSampler(1000).sample(target, 64)
        >>> loss = ssc.distributed.sharded_sampled_softmax_loss(
        ...     h, weight, target, samples, shard=shard, sparse_grad=True)
        >>> rows = weight[shard.row_of(torch.arange(1000))]
        >>> torch.allclose(loss, ssc.sampled_softmax_loss(h, rows, target, samples))
        True
    """
    divide_factor = check_layout(_NAME, algorithm, input_layout, gradient_divide_factor)
    options = checked_options(
        _NAME,
        objective,
        temperature,
        correction,
        remove_accidental_hits,
        ignore_index,
        softcap,
        cosine,
        z_loss,
    )
    _checks.check_choice(_NAME, "reduction", reduction, REDUCTIONS)
    if padding_idx is not None:
        padding_idx = _checks.check_padding_idx(_NAME, padding_idx, shard.num_classes)
    layout = Layout(shard, ALONE, shard.agreement, input_layout, divide_factor)
    asked = Asked(
        _NAME, layout, options, algorithm, padding_idx, reduction, sparse_grad, return_details
    )

    def check() -> None:
        _checks.check_samples(_NAME, samples, target, input, shard.num_classes)
        if not isinstance(samples, Samples):
            raise TypeError(f"{_NAME}: samples must be a Samples: pass samples.materialize()")
        _checks.check_id_range(_NAME, "samples.ids", samples.ids, shard.num_classes)

    def draw(batch: Batch, agreed: Agreed) -> Drawn:
        return drawn_of(samples, shard, padding_idx, batch.target)

    call = agreed_call(
        asked,
        input,
        weight,
        target,
        draw,
        bias=bias,
        exclude=exclude,
        class_weight=class_weight,
        sample_weight=sample_weight,
        same={},
        check=check,
    )
    return solve_call(call)

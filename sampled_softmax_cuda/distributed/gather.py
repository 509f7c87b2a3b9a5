"""Input rows travel: each rank scores the rows of all ranks against its own samples.

The input rows are all-gathered, the owner of a target computes its logit, every rank the sum over
the samples in its shard, and the partial sums meet. No row of the class matrix and none of its
gradient ever leaves its rank. A rank sends and receives about 2 (1 - 1/R) B_all D numbers, and
holds at most `MOST_GATHERED` of them at a time, and as many of their gradient: more rows are
gathered in chunks, and once more in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ReduceOp

from .. import _owed
from ..losses import gather as local
from ..losses.gradients import fork
from ..losses.rows import (
    SampledSoftmaxDetails,
    compute_dtype,
    infinite_is_nan,
    ordered_sum,
    result_dtype,
)
from ..losses.targets import (
    Step,
    TargetTerms,
    details_of_rows,
    losses_of_rows,
    only,
    target_terms,
)
from ..ops.dispatch import kernels_take
from ..ops.negatives import negatives_loss
from ..ops.unit_rows import unit_rows
from ..reference import problem as reference
from ..samples import Samples
from .autograd import combine, gather_rows, replicated_rows, sum_over_ranks
from .call import Batch, Call, Layout, row_factor
from .chunks import in_chunks
from .drawn import known, own_of
from .gradients import shard_parameters

MOST_GATHERED = 1 << 26
"""The numbers of input rows, R b D, that are gathered at a time: 256 MiB in float32."""


class _Parts(NamedTuple):
    """The rows of all ranks, and the part of the classes that is here."""

    input: Tensor
    """[B, D]"""
    weight: Tensor
    """[C', D], this rank's rows or, with cosines, the unit rows that are touched."""
    weight_of_targets: Tensor
    """The same, for its other use."""
    bias: Tensor | None
    bias_of_targets: Tensor | None
    samples: Samples
    """Of this rank, as rows of the weight."""
    target: Tensor
    """[B, T] rows of the weight; -1 for those of other ranks."""
    exclude: Tensor | None
    sparse_grad: bool


class _Met(NamedTuple):
    """This rank's rows after the sums of all ranks have met."""

    step: Step
    terms: TargetTerms
    negatives: Tensor
    """[b]"""
    peak: Tensor
    """[b], the largest logit of a negative, if it was wanted."""
    class_weight: Tensor | None
    """[b, T]"""


def gather_loss(call: Call) -> tuple[Tensor, SampledSoftmaxDetails | None]:
    """The loss of this rank's rows, as `fetch.fetch_loss` computes it from the same call."""
    rows, *others = _by_chunks(call, _losses)
    of_class = None if call.class_weight is None else others.pop(0)
    own = _own_rows(call)
    batch = _rows_of_batch(call.batch, own) if call.layout.replicated else call.batch
    factor = row_factor(call, batch, of_class)
    if factor is not None:
        rows = rows * factor
    dtype = result_dtype(call.batch.input, call.weight, call.bias)
    loss = (rows if call.asked.reduction == "none" else ordered_sum(rows)).to(dtype)
    return loss, SampledSoftmaxDetails(*others) if call.asked.want_details else None


def gather_log_prob(call: Call) -> tuple[Tensor, None]:
    """Log probabilities [b, T] of the targets among the samples, which are all classes."""
    options = replace(call.options, remove_accidental_hits=False)
    call = replace(call, asked=replace(call.asked, options=options))
    return _by_chunks(call, _log_prob)[0], None


def _losses(call: Call, met: _Met) -> tuple[Tensor, ...]:
    """The losses [b], and the class weights and details that are wanted."""
    results = [losses_of_rows(met.terms, met.negatives, met.step)]
    if met.class_weight is not None:
        results.append(met.class_weight[:, 0])
    if call.asked.want_details:
        details = details_of_rows(met.terms, met.negatives.detach(), met.peak, met.step)
        results += [row.detach() for row in details]
    return tuple(results)


def _log_prob(call: Call, met: _Met) -> tuple[Tensor, ...]:
    # exp(N) - 1 is the sum over all classes, the targets among them, relative to the targets' sum.
    n = met.negatives
    lse = met.terms.logit + n + torch.log(-torch.expm1(-n))
    return (met.terms.z - lse[:, None],)


def _by_chunks(
    call: Call, results_of: Callable[[Call, _Met], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """The results of all rows, in chunks if the rows of all ranks are more than fit at a time."""
    ranks, sizes = call.layout.ranks, call.agreed.rows
    chunk = max(1, MOST_GATHERED // max(1, ranks.size * call.batch.input.shape[1]))
    if call.layout.replicated or ranks.size == 1 or max(sizes) <= chunk:
        everyone = _all_rows(call.layout, call.batch, sizes)
        call = _with_parameters(call, everyone.target)
        return results_of(call, _meet(call, everyone))
    whole = _with_parameters(call, ranks.gather_rows(call.batch.target, sizes, "targets"))
    chunks = [slice(at, at + chunk) for at in range(0, max(sizes), chunk)]

    def run(number: int, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        rows = chunks[number]
        counts = call.drawn.target_log_count
        part = replace(
            whole,
            batch=replace(_rows_of_batch(call.batch, rows), input=input),
            agreed=replace(call.agreed, rows=[len(range(n)[rows]) for n in sizes]),
            weight=weight,
            bias=bias,
            drawn=call.drawn._replace(target_log_count=None if counts is None else counts[rows]),
        )
        return results_of(part, _meet(part, _all_rows(part.layout, part.batch, part.agreed.rows)))

    return in_chunks(run, chunks, call.batch.input, whole.weight, whole.bias)


def _with_parameters(call: Call, target: Tensor) -> Call:
    """The call with parameters that are settled, and whose gradients are averaged.

    Args:
        target: [B, T] of all ranks.
    """
    shard = call.layout.shard
    safe, inside = known(target, shard.num_classes)
    place, own = shard.local_of(shard.row_of(safe))
    _owed.settle(
        (call.weight, call.bias), lambda: (own_of(call.drawn, shard)[0], place[own & inside])
    )
    weight, bias = shard_parameters(call, call.drawn)
    return replace(call, weight=weight, bias=bias)


def _own_rows(call: Call) -> slice:
    """Where this rank's rows are among those of all."""
    ranks, sizes = call.layout.ranks, call.agreed.rows
    begin = sum(sizes[: ranks.rank])
    return slice(begin, begin + sizes[ranks.rank])


def _meet(call: Call, everyone: Batch) -> _Met:
    """The targets' logits and the sums over negatives of this rank's rows.

    Args:
        everyone: the rows of all ranks.
    """
    layout, options, drawn = call.layout, call.options, call.drawn
    ranks, sizes = layout.ranks, call.agreed.rows
    counts = drawn.target_log_count
    if counts is not None and not layout.replicated:
        counts = ranks.gather_rows(counts, sizes, "expected counts of targets")
    parts = _parts(call, everyone)
    product, offset, counts, of_class = _of_targets(call, parts, counts, everyone.target)
    there = everyone.target != options.ignore_index
    _, inside = known(everyone.target, layout.shard.num_classes)
    hits = parts.target
    if parts.exclude is not None:
        hits = torch.cat((hits, parts.exclude), dim=1)
    step = Step(
        options,
        replace(parts.samples, target_log_expected_count=counts),
        layout.shard.num_classes,
        drawn.num_samples,
        everyone.target,
        there,
        there.any(dim=1),
        (there & ~inside).any(dim=1),
        hits,
        parts.sparse_grad,
    )
    terms = target_terms(product, offset, step)
    negatives, peak = _negatives(parts, terms, step)
    if options.objective._sigmoid:
        negatives = sum_over_ranks(negatives, ranks, "sums over negatives")
    else:
        negatives = combine(negatives, ranks)
    if call.asked.want_details:
        peak = ranks.all_reduce(peak, "largest logits", ReduceOp.MAX)

    own = _own_rows(call)
    return _Met(
        _rows_of_step(step, own),
        _rows_of_terms(terms, own),
        negatives[own],
        peak[own],
        None if of_class is None else of_class[own],
    )


def _all_rows(layout: Layout, batch: Batch, sizes: list[int]) -> Batch:
    """The rows of all ranks."""
    ranks = layout.ranks
    if layout.replicated:
        return replace(batch, input=replicated_rows(batch.input, ranks))
    exclude = batch.exclude
    return replace(
        batch,
        input=gather_rows(batch.input, ranks, sizes),
        target=ranks.gather_rows(batch.target, sizes, "targets"),
        exclude=None if exclude is None else ranks.gather_rows(exclude, sizes, "excluded classes"),
    )


def _parts(call: Call, batch: Batch) -> _Parts:
    """The rows of this rank's classes that a step touches, and their names.

    Args:
        batch: the rows of all ranks.
    """
    shard, drawn, sparse_grad = call.layout.shard, call.drawn, call.asked.sparse_grad
    rows, count = own_of(drawn, shard)
    target, own = shard.local_of(shard.row_of(known(batch.target, shard.num_classes)[0]))
    own = own & known(batch.target, shard.num_classes)[1]
    weight, bias = call.weight, call.bias
    exclude = batch.exclude
    if exclude is not None:
        legal, inside = known(exclude, shard.num_classes)
        place, here = shard.local_of(shard.row_of(legal))
        exclude = torch.where(inside & here, place, -1)
    target = torch.where(own, target, -1)
    weights: tuple[Tensor, ...] = (weight,) * 2
    biases: tuple[Tensor | None, ...] = (bias,) * 2
    if call.options.cosine:
        dtype = compute_dtype(batch.input)
        named = local.touched_rows(
            weight, bias, rows, target[own], exclude, dtype, sparse_grad, unit_rows
        )
        target = torch.full_like(target, -1).masked_scatter_(own, named.target)
        # Rows of norm 1, or of norm 0 where none counts.
        counted = (batch.target != call.options.ignore_index).any(dim=1)
        h = unit_rows(only(counted[:, None], batch.input), None, dtype, False)
        weights, biases = (named.weight,) * 2, (named.bias,) * 2
        rows, exclude, sparse_grad = named.ids, named.exclude, False
    else:
        h = batch.input
        if sparse_grad:
            weights = fork(weight, 2)
            biases = biases if bias is None else fork(bias, 2)
    return _Parts(
        h,
        weights[0],
        weights[1],
        biases[0],
        biases[1],
        Samples(rows, count),
        target,
        exclude,
        sparse_grad,
    )


def _of_targets(
    call: Call, p: _Parts, log_count: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The products with targets, their biases, log expected counts and class weights, [B, T] all,
    which the owners of the targets tell to all ranks.

    Args:
        log_count: those that all ranks know, or None.
        target: [B, T] classes.
    """
    shard, log_count_of, class_weight = (
        call.layout.shard,
        call.drawn.log_count_of,
        call.class_weight,
    )
    dtype = compute_dtype(p.input)
    at = (p.target >= 0).nonzero(as_tuple=True)
    classes = p.target[at]
    h = p.input[at[0]].to(dtype)
    rows = local.gather_rows(p.weight_of_targets, classes, dtype, p.sparse_grad)
    told = [infinite_is_nan((h * rows).sum(dim=-1))]
    if p.bias_of_targets is not None:
        told.append(local.gather_rows(p.bias_of_targets, classes, dtype, p.sparse_grad))
    if log_count_of is not None or class_weight is not None:
        own = shard.row_of(target[at]) - shard.begin
        if log_count_of is not None:
            count = log_count_of(own).to(dtype)
            told.append(count.masked_fill(count == -torch.inf, 0.0))
        if class_weight is not None:
            told.append(class_weight[own].to(dtype))
    table = torch.stack([torch.zeros_like(p.target, dtype=dtype).index_put(at, x) for x in told])
    product, *rest = sum_over_ranks(table, shard.ranks, "logits of targets").unbind()
    offset = rest.pop(0) if p.bias_of_targets is not None else None
    if log_count_of is not None:
        log_count = rest.pop(0).detach()
    return product, offset, log_count, rest.pop(0).detach() if class_weight is not None else None


def _negatives(p: _Parts, terms: TargetTerms, s: Step) -> tuple[Tensor, Tensor]:
    """The negatives' loss [B] by this rank's samples, and the largest logit among them."""
    o, samples = s.options, p.samples
    if samples.num_samples == 0:
        # A part of the graph all the same: all ranks meet in the backward pass.
        return terms.logit * 0.0 + p.input.sum() * 0.0, torch.full_like(terms.largest, -torch.inf)
    served = kernels_take("negatives_rows", p.input, p.weight, p.bias, samples.log_expected_count)
    compute = negatives_loss if served else reference.negatives_loss
    return compute(
        p.input,
        p.weight,
        p.bias,
        terms.logit,
        s.hits,
        s.counted,
        samples,
        1.0 / o.temperature,
        o.softcap or 0.0,
        o.remove_accidental_hits,
        o.objective._sigmoid,
        p.sparse_grad,
        o.corrects_samples,
    )


def _rows_of_step(s: Step, own: slice) -> Step:
    def part(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[own]

    return replace(
        s, target=s.target[own], there=part(s.there), counted=part(s.counted), bad=part(s.bad)
    )


def _rows_of_terms(terms: TargetTerms, own: slice) -> TargetTerms:
    return replace(
        terms,
        z=terms.z[own],
        largest=terms.largest[own],
        logit=terms.logit[own],
        own=None if terms.own is None else terms.own[own],
    )


def _rows_of_batch(batch: Batch, own: slice) -> Batch:
    weight, exclude = batch.sample_weight, batch.exclude
    return replace(
        batch,
        input=batch.input[own],
        target=batch.target[own],
        exclude=None if exclude is None else exclude[own],
        sample_weight=None if weight is None else weight[own],
    )

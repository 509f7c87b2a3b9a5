"""The exact softmax over the classes of all ranks: for evaluation. All functions are collective.

The exact loss is the sampled one with every class sampled once, so that `gather` computes it: each
rank sums over its own classes, streamed, and the sums meet. No rank holds logits [*, C].
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _owed, exact
from .._arguments import check_int64
from ..losses.rows import compute_dtype
from ..objectives import SOFTMAX
from ..options import Options
from .call import Agreed, Asked, Batch, agree, check_call
from .drawn import Drawn
from .functional import agreed_call, solve_call
from .shard import ClassShard

# An ignore_index that no class id and no sensible target has.
_IGNORE_NOTHING = exact.IGNORE_NOTHING


def _every_class(shard: ClassShard, padding_idx: int | None, device: torch.device) -> Drawn:
    """Each class sampled once, by its owner."""
    rows = torch.arange(shard.begin, shard.end, device=device)
    count = None
    if padding_idx is not None:
        count = torch.zeros(rows.shape, dtype=torch.float32, device=device)
        count = count.masked_fill(shard.class_of(rows) == padding_idx, torch.inf)
    ranges = (shard.rows_of_rank(rank) for rank in range(shard.ranks.size))
    return Drawn(rows, count, sizes=[end - begin for begin, end in ranges])


def _exact_options(o: Options) -> Options:
    """The options that make logits, of a softmax over all classes."""
    return replace(o, objective=SOFTMAX, correction="none", remove_accidental_hits=True)


def exact_loss(
    asked: Asked,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None,
    exclude: Tensor | None = None,
    class_weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Any:
    """The cross entropy over all classes; the gradients of the shard are dense."""
    shard = asked.layout.shard

    def check() -> None:
        _checks.check_target(asked.fn, target, input, shard.num_classes)

    def draw(batch: Batch, agreed: Agreed) -> Drawn:
        return _every_class(shard, asked.padding_idx, weight.device)

    asked = replace(
        asked, options=_exact_options(asked.options), algorithm="gather", sparse_grad=False
    )
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
        same={"loss": "exact, as in eval mode"},
        check=check,
    )
    return solve_call(call)


def log_prob(
    asked: Asked, input: Tensor, weight: Tensor, ids: Tensor, *, bias: Tensor | None
) -> Tensor:
    """Exact log probabilities of classes `ids`, [*] or [*, K]; -inf for the padding."""
    shard, padding_idx = asked.layout.shard, asked.padding_idx

    def check() -> None:
        check_int64(asked.fn, "ids", ids)
        _checks.check_id_range(asked.fn, "ids", ids, shard.num_classes)

    def draw(batch: Batch, agreed: Agreed) -> Drawn:
        return _every_class(shard, padding_idx, weight.device)

    asked = replace(
        asked,
        options=_exact_options(replace(asked.options, ignore_index=_IGNORE_NOTHING, z_loss=0.0)),
        algorithm="gather",
        sparse_grad=False,
        reduction="none",
        padding_idx=None,
        log_prob=True,
    )
    call = agreed_call(
        asked,
        input,
        weight,
        ids,
        draw,
        bias=bias,
        class_weight=None,
        same={"loss": "log_prob"},
        check=check,
    )
    found: Tensor = solve_call(call)
    found = found.reshape(ids.shape)
    return found if padding_idx is None else found.masked_fill(ids == padding_idx, -torch.inf)


@torch.no_grad()
def topk(asked: Asked, input: Tensor, weight: Tensor, k: int, *, bias: Tensor | None) -> exact.TopK:
    """The k largest logits of each row, and their classes; k candidates per row and rank travel."""
    shard, ranks, o = asked.layout.shard, asked.layout.ranks, asked.options
    most = shard.num_classes - (asked.padding_idx is not None)
    batch, error = None, None
    try:
        k = _checks.check_positive_int(asked.fn, "k", k)
        if k > most:
            raise ValueError(
                f"{asked.fn}: k must be at most {most}, the number of classes, got {k}"
            )
        target = torch.zeros(input.shape[:-1], dtype=torch.int64, device=weight.device)
        batch = check_call(asked.fn, shard, input, weight, bias, target, None, None, None, o, None)
    except Exception as problem:
        error = problem
    same = {"k": k, "input": getattr(input, "dtype", None), "softcap": o.softcap}
    phase = f"{asked.fn}, topk"
    agreed = agree(asked.fn, asked.layout, phase, weight.device, batch, error, o, same)
    assert batch is not None
    _owed.settle((weight, bias))
    h, sizes = batch.input, agreed.rows
    if not asked.layout.replicated:
        h = ranks.gather_rows(h, sizes, "input rows")
    values = h.new_full((h.shape[0], k), -torch.inf, dtype=compute_dtype(h))
    classes = torch.zeros(values.shape, dtype=torch.int64, device=h.device)
    own = _padding_here(shard, asked.padding_idx)
    there = shard.num_rows - (own is not None)
    if there > 0 and h.shape[0] > 0:
        best = exact.topk(
            h,
            weight,
            min(k, there),
            bias=bias,
            temperature=o.temperature,
            softcap=o.softcap,
            cosine=o.cosine,
            padding_idx=own,
        )
        found = best.values.shape[1]
        values[:, :found] = best.values
        classes[:, :found] = shard.class_of(best.indices + shard.begin)
    if asked.layout.replicated:
        values, classes = (ranks.gather(x, "candidates") for x in (values, classes))
    else:
        take = [sizes[ranks.rank]] * ranks.size
        shape = (ranks.size, sizes[ranks.rank], k)
        waits = [ranks.exchange(x, sizes, take, "candidates") for x in (values, classes)]
        values, classes = (wait().view(shape) for wait in waits)
    values, classes = (x.transpose(0, 1).flatten(1) for x in (values, classes))
    values, place = values.topk(k, dim=1)
    shape = (*batch.leading, k)
    return exact.TopK(values.reshape(shape), classes.gather(1, place).reshape(shape))


def _padding_here(shard: ClassShard, padding_idx: int | None) -> int | None:
    """The row of the padding, if it is this rank's."""
    if padding_idx is None:
        return None
    row = int(shard.row_of(torch.tensor(padding_idx, device="cpu")))
    return row - shard.begin if shard.begin <= row < shard.end else None

"""Rows travel: each rank fetches the rows that its loss needs, and sends their gradients back.

The rows of all samples and of the rank's own targets come from their owners, the loss of a single
process runs on them, and the owners add up the gradients. A rank sends and receives
(1 - 1/R) (S + B) D numbers each way, whatever the number of rows of the whole batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _owed
from ..functional import solve
from ..losses.gradients import sparse_rows
from ..losses.problem import make_problem
from ..losses.rows import SampledSoftmaxDetails
from ..samples import Samples
from .call import Call, row_factor
from .drawn import Drawn, all_of, known
from .gradients import add_rows, shard_parameters
from .ranks import Ranks, Wait
from .shard import ClassShard

_IGNORED = -100  # stands for the ignore_index of the call, which might be a place among the rows


class Requests(NamedTuple):
    """The distinct rows that this rank asks for, and those that others ask of it."""

    rows: Tensor
    """[N] rising, counted over all ranks, so that those of one owner lie together."""
    place: Tensor
    """Where each of the rows that were wanted is among them, of their shape."""
    ask: list[int]
    """How many of each rank."""
    asked: Tensor
    """[M] rows, counted from this rank's first, for rank 0 and so on; repeated between ranks."""
    give: list[int]
    """How many for each rank."""


def request(shard: ClassShard, wanted: Tensor) -> Requests:
    """Tell the owners which rows this rank wants.

    Args:
        wanted: int64 rows in [0, C), repeats among them.
    """
    ranks = shard.ranks
    rows, place = torch.unique(wanted, return_inverse=True)
    if ranks.size == 1:
        return Requests(rows, place, [len(rows)], rows, [len(rows)])
    ends = [shard.rows_of_rank(rank)[1] for rank in range(ranks.size)]
    upto = torch.searchsorted(rows, torch.tensor(ends, device=rows.device))
    counts = torch.diff(upto, prepend=upto.new_zeros(1))
    ones = [1] * ranks.size
    given = ranks.exchange(counts, ones, ones, "numbers of rows")()
    ask, give = torch.stack((counts, given)).tolist()
    asked = ranks.exchange(rows, ask, give, "row numbers")() - shard.begin
    return Requests(rows, place, ask, asked, give)


class Fetching(NamedTuple):
    """Rows on their way."""

    drawn: Drawn
    """The samples of all ranks."""
    requests: Requests
    rows: list[Wait]
    """Wait for the rows [N, ...] of weight and bias."""
    log_count_of: Wait | None
    """Log expected counts [N] of the rows, where their owners alone know them."""
    class_weight: Wait | None
    """[N]"""


class _Fetch(torch.autograd.Function):
    """Rows [N, ...] of tables that lie on the ranks, and the way back of their gradients."""

    @staticmethod
    def forward(
        ctx: Any, ranks: Ranks, fetching: Fetching, sparse_grad: bool, *tables: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.ranks, ctx.requests, ctx.sparse_grad = ranks, fetching.requests, sparse_grad
        ctx.tables = [table.detach() for table in tables]
        return tuple(wait() for wait in fetching.rows)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        r: Requests = ctx.requests
        waits = [
            ctx.ranks.exchange(grad, r.ask, r.give, "gradients of rows") if needed else None
            for grad, needed in zip(grads, ctx.needs_input_grad[3:], strict=True)
        ]
        results: list[Tensor | None] = []
        rows, place = r.asked, None
        if ctx.ranks.size > 1:
            rows, place = torch.unique(r.asked, return_inverse=True)
        for table, wait in zip(ctx.tables, waits, strict=True):
            if wait is None:
                results.append(None)
                continue
            values = wait()
            if place is not None:
                values = add_rows(place, values, len(rows))
            if ctx.sparse_grad:
                results.append(sparse_rows(rows[None], values, table))
            else:
                results.append(torch.zeros_like(table).index_copy_(0, rows, values))
        return None, None, None, *results


def begin_fetch(call: Call) -> Fetching:
    """Ask for the rows that a loss needs, and send those that others ask for.

    Args:
        call: of which the input is not looked at.
    """
    shard, batch = call.layout.shard, call.batch
    drawn = all_of(call.drawn, shard)
    safe, inside = known(batch.target, shard.num_classes)
    samples, targets = drawn.rows.reshape(-1), shard.row_of(safe)
    # A target that is no class asks for a row that is there anyway.
    targets = torch.where(inside, targets, samples[0])
    requests = request(shard, torch.cat((samples, targets.reshape(-1))))
    asked = requests.asked
    _owed.settle((call.weight, call.bias), lambda: (asked,))

    def send(numbers: Tensor | None, what: str) -> Wait | None:
        if numbers is None:
            return None
        return shard.ranks.exchange(numbers, requests.give, requests.ask, what)

    log_count_of = None if drawn.log_count_of is None else drawn.log_count_of(asked)
    of_class = None if call.class_weight is None else call.class_weight[asked]
    tables = (table.detach().index_select(0, asked) for table in _tables(call.weight, call.bias))
    rows = [shard.ranks.exchange(x, requests.give, requests.ask, "rows") for x in tables]
    return Fetching(
        drawn,
        requests,
        rows,
        send(log_count_of, "expected counts of classes"),
        send(of_class, "weights of classes"),
    )


def _tables(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    return (weight,) if bias is None else (weight, bias)


def fetch_loss(
    call: Call, fetching: Fetching | None = None
) -> tuple[Tensor, SampledSoftmaxDetails | None]:
    """The loss of this rank's rows, [] or [B] with reduction="none", and details [B].

    Args:
        fetching: what `begin_fetch` has returned for this call; None: to begin now.
    """
    layout, batch, options = call.layout, call.batch, call.options
    shard = layout.shard
    if fetching is None:
        fetching = begin_fetch(call)
    drawn, requests = fetching.drawn, fetching.requests
    tables = _tables(*shard_parameters(call, drawn))
    rows, *offsets = _Fetch.apply(shard.ranks, fetching, call.asked.sparse_grad, *tables)  # type: ignore[no-untyped-call]
    log_count_of, class_weights = (
        None if wait is None else wait() for wait in (fetching.log_count_of, fetching.class_weight)
    )
    _, inside = known(batch.target, shard.num_classes)

    place, at = torch.split(requests.place, [drawn.rows.numel(), batch.target.numel()])
    at = at.view_as(batch.target)
    # A target that is out of range of all classes stays so for these rows.
    none = batch.target == options.ignore_index
    target = torch.where(inside, at, len(requests.rows)).masked_fill(none, _IGNORED)
    target_log_count = drawn.target_log_count
    if log_count_of is not None:
        of_target = log_count_of[at]
        target_log_count = of_target.masked_fill(~inside | (of_target == -torch.inf), 0.0)
    of_class = None if class_weights is None else class_weights[at[:, 0]]
    exclude = batch.exclude
    if exclude is not None:
        exclude = _renamed(exclude, shard, requests.rows)
    many = target.shape[1] > 1
    if not many:
        target = target[:, 0]
        target_log_count = None if target_log_count is None else target_log_count[:, 0]
    details = call.asked.want_details
    problem = make_problem(
        call.asked.fn,
        batch.input,
        rows,
        target,
        Samples(place.view(drawn.rows.shape), drawn.log_count, target_log_count),
        offsets[0] if offsets else None,
        options.objective,
        options.temperature,
        options.correction,
        options.remove_accidental_hits,
        options.softcap,
        options.cosine,
        options.z_loss,
        exclude,
        _IGNORED,
        sample_weight=row_factor(call, batch, of_class),
        reduction="none" if call.asked.reduction == "none" else "sum",
        return_details=details,
    )
    result = solve(call.asked.fn, problem._replace(num_classes=shard.num_classes))
    return result if details else (result, None)


def _renamed(exclude: Tensor, shard: ClassShard, rows: Tensor) -> Tensor:
    """Excluded classes as places among the rows that are here; -1 for others, which are no
    negatives anyway."""
    legal, inside = known(exclude, shard.num_classes)
    wanted = shard.row_of(legal)
    place = torch.searchsorted(rows, wanted).clamp(max=len(rows) - 1)
    return torch.where(inside & (rows[place] == wanted), place, -1)

"""Tiny problems through the kernels of a device, against the reference in float64 on the CPU.

A family is a group of operators that are trusted together, `FAMILIES`. A problem has more rows and
samples than a tile of 128, ids that repeat, a row that doesn't count, a target that is drawn and a
masked sample. `trust.py` decides when this runs and what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._rules import host_rules
from ..losses.rows import compute_dtype
from ..proposals import Method, log_uniform, uniform, weighted
from ..reference import alias_table, row_update
from ..reference import sample as draws
from ..reference.exact import exact_loss_rows, logits
from ..reference.loss import loss_rows
from ..reference.negatives import negative_rows
from ..reference.per_row import per_row_rows
from ..updates import HISTORY_COLUMNS, Rounding, RowUpdate, Rule, UpdateOptions
from .library import operators
from .negatives import Source
from .optim import call_row_update
from .precision import BF16, IEEE, TF32

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
B, D, S, C = 131, 40, 137, 301
_SAMPLES_OF_ROWS = 5
_DRAWN = 33
_TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 4e-2,
    torch.float16: 1e-2,
    torch.float64: 1e-10,
}
_TF32_TOLERANCE = 1e-2
_COUNT_TOLERANCE = 1e-5  # of log counts, float32 in both
# softcap, remove_hits, sigmoid: not every pair of them with the samples, for time's sake.
_SUMS = {
    "shared samples": ((5.0, True, False), (0.0, False, True)),
    "samples of rows": ((0.0, False, True),),
    "keyed samples": ((5.0, True, False),),
}


class Result(NamedTuple):
    """One result of the kernels beside that of the reference.

    Attributes:
        theirs: on the CPU.
        tolerance: the largest difference that is allowed, as a share of the largest number.
    """

    name: str
    ours: Tensor
    theirs: Tensor
    tolerance: float

    @property
    def error(self) -> float:
        """The largest difference over the largest number; inf where shapes or NaN differ."""
        ours, theirs = self.ours.detach().cpu().double(), self.theirs.detach().double()
        if ours.shape != theirs.shape:
            return torch.inf
        difference = float((ours - theirs).abs().max())
        scale = max(float(theirs.abs().max()), 1e-30)
        return difference / scale if difference == difference else torch.inf


@dataclass(frozen=True)
class Finding:
    """How far a family is from the reference.

    Attributes:
        error: of the worst result, as a share of what is allowed; inf where a kernel failed.
        message: what differs or failed, in one line; "" if all is right.
    """

    error: float
    message: str = ""


def examine(family: str, device: torch.device, dtype: torch.dtype) -> Finding:
    """Run the problems of a family.

    Args:
        family: of `FAMILIES`.
        device: of the kernels.
        dtype: of input, weight and bias; of the parameter of an update. Draws have none.
    """
    worst = 0.0
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            for result in FAMILIES[family](device, dtype):
                error, allowed = result.error, result.tolerance
                worst = max(worst, error / allowed if allowed else error)
                if not error <= allowed:
                    return Finding(
                        worst,
                        f"{result.name} differs by {error:.1e} of its largest number, where"
                        f" {allowed:.0e} is allowed",
                    )
    except Exception as error:  # a launch may fail in any way, and nobody asked for it
        lines = str(error).strip().splitlines() or [""]
        return Finding(torch.inf, f"{type(error).__name__}: {lines[0]}")
    return Finding(worst)


# --- the problems ---------------------------------------------------------------------------------


class _Numbers:
    """Random tensors on the CPU that are the same each time and disturb no other generator."""

    def __init__(self) -> None:
        self.generator = torch.Generator("cpu").manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float32, device="cpu")
        return x.to(dtype)

    def ids(self, *shape: int, least: int = 0, most: int = C) -> Tensor:
        return torch.randint(least, most, shape, generator=self.generator, device="cpu")


_Operands = tuple[Tensor, Tensor, Tensor]


def _operands(numbers: _Numbers, dtype: torch.dtype) -> _Operands:
    """Input [B, D], weight [C, D] and bias [C]."""
    input = numbers.normal(B, D, dtype=dtype)
    return input, (numbers.normal(C, D) * 0.3).to(dtype), numbers.normal(C, dtype=dtype)


def _moved(tensors: Sequence[Any], device: torch.device) -> list[Any]:
    return [x.to(device) if isinstance(x, Tensor) else x for x in tensors]


def _leaves(operands: _Operands) -> _Operands:
    """Copies in float64 to differentiate by."""
    input, weight, bias = (x.double().requires_grad_() for x in operands)
    return input, weight, bias


def _modes(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[int, float]]:
    """How products of float32 may be rounded, and the tolerance."""
    yield IEEE, _TOLERANCE[dtype]
    if dtype == torch.float32 and device.type == "cuda":
        yield TF32, _TF32_TOLERANCE
    elif dtype == torch.float32 and host_rules(torch.empty(0, device=device)):
        yield BF16, _TOLERANCE[torch.bfloat16]


def _gradients(
    name: str, grads: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float
) -> Iterator[Result]:
    """Gradients of input, weight and bias, and the classes of the last two, empty if dense."""
    input, weight, bias, rows = (x.cpu() for x in grads)
    if rows.numel() > 0:
        weight = torch.zeros(C, D, dtype=torch.float64).index_add_(0, rows[0], weight.double())
        bias = torch.zeros(C, dtype=torch.float64).index_add_(0, rows[0], bias.double())
    for of, ours, their in zip(
        ("input", "weight", "bias"), (input, weight, bias), theirs, strict=True
    ):
        yield Result(f"{name}: the gradient of {of}", ours, their, tolerance)


def _loss(device: torch.device, dtype: torch.dtype) -> Iterator[Result]:
    """The plain softmax of shared samples."""
    numbers = _Numbers()
    operands = _operands(numbers, dtype)
    ids, target = numbers.ids(S), numbers.ids(B)
    target[1], target[2] = -100, ids[0]
    log_counts, target_log_counts = numbers.normal(S), numbers.normal(B)
    log_counts[3] = torch.inf
    scale = numbers.normal(B).to(compute_dtype(operands[0]))
    rest = (target, ids, log_counts, target_log_counts)
    scalars = (0.7, True, -100)
    leaves = _leaves(operands)
    rows = loss_rows(*leaves, *rest, *scalars)
    total = (rows[0] * scale).sum()
    theirs = torch.autograd.grad(total, leaves)
    arguments = (*_moved((*operands, *rest), device), *scalars)
    for products, tolerance in _modes(device, dtype):
        ours = operators.loss_rows(*arguments, products)
        for name, a, b in zip(("loss", "lse", "target logit"), ours, rows, strict=False):
            yield Result(name, a, b, tolerance)
        if products == IEEE:  # whose rounding may turn a close race
            yield Result("error", ours[3], rows[3], 0.0)
        for sparse in (False, True):
            sweep = operators.loss_and_grads(*arguments, scale.to(device), False, sparse, products)
            name = f"loss with {'sparse' if sparse else 'dense'} gradients"
            yield Result(name, sweep[0].reshape(()), total, tolerance)
            yield Result(f"{name}: its rows", sweep[1][0], rows[0], tolerance)
            yield from _gradients(name, sweep[2:], theirs, tolerance)


def _sources(numbers: _Numbers) -> Iterator[tuple[str, Source, Tensor, Tensor]]:
    """Samples as the operators take them, and their ids and log counts, [S] or [B, S]."""
    ids, log_counts = numbers.ids(S), numbers.normal(S)
    log_counts[3] = torch.inf
    yield "shared samples", Source(ids, log_counts), ids, log_counts
    ids, log_counts = numbers.ids(B, _SAMPLES_OF_ROWS), numbers.normal(B, _SAMPLES_OF_ROWS)
    yield "samples of rows", Source(ids, log_counts), ids, log_counts
    key, exclude = torch.tensor([7, 1], device="cpu"), numbers.ids(B, 2, least=-1)
    how = (_SAMPLES_OF_ROWS, int(Method.DISTINCT), None, exclude)
    source = Source(None, None, key, *log_uniform(C), *how)
    ids, _, log_counts, _ = draws.sample(log_uniform(C), key, exclude[:, :0], *how, per_row=True)
    yield "keyed samples", source, ids, log_counts


def _negatives(device: torch.device, dtype: torch.dtype) -> Iterator[Result]:
    """The sums over negatives that all other losses are made of."""
    numbers = _Numbers()
    operands = _operands(numbers, dtype)
    sums = compute_dtype(operands[0])
    target_logit, scale = numbers.normal(B).to(sums), numbers.normal(B).to(sums)
    hits, counted = numbers.ids(B, 2, least=-1), torch.arange(B, device="cpu") != 1
    given = (target_logit, hits, counted)
    for of, source, ids, log_counts in _sources(numbers):
        compute: Callable[..., Any] = negative_rows if ids.dim() == 1 else per_row_rows
        for softcap, remove_hits, sigmoid in _SUMS[of]:
            rest = (0.7, softcap, remove_hits, sigmoid)
            leaves = _leaves(operands)
            rows = compute(*leaves, target_logit.double(), hits, counted, ids, log_counts, *rest)
            theirs = torch.autograd.grad((rows[0] * scale).sum(), leaves)
            arguments = _moved((*operands, *given, *source, *rest), device)
            name = f"{'sigmoid' if sigmoid else 'softmax'} over {of}"
            for products, tolerance in _modes(device, dtype):
                loss, peak = operators.negatives_rows(*arguments, products)
                yield Result(f"{name}: the loss", loss, rows[0], tolerance)
                yield Result(f"{name}: the largest logit", peak, rows[1], tolerance)
                for sparse in (False, True):
                    grads = operators.negatives_grads(
                        *arguments, scale.to(device), sparse, products
                    )
                    yield from _gradients(name, grads, theirs, tolerance)


def _exact(device: torch.device, dtype: torch.dtype) -> Iterator[Result]:
    """Losses and logits over all classes."""
    numbers = _Numbers()
    operands, target = _operands(numbers, dtype), numbers.ids(B)
    target[1] = -100
    with torch.no_grad():
        rows = exact_loss_rows(*_leaves(operands), target, 0.7, -100)
        some = logits(*_leaves(operands), 3, C - 1, 0.7)
    moved = _moved(operands, device)
    for products, tolerance in _modes(device, dtype):
        loss, lse = operators.exact_loss_rows(*moved, target.to(device), 0.7, -100, products)
        counted = target != -100  # of other rows the logsumexp is no promise
        yield Result("exact loss", loss, rows[0], tolerance)
        yield Result("logsumexp", lse.cpu()[counted], rows[1][counted], tolerance)
        ours = operators.logits(*moved, 3, C - 1, 0.7, products)
        yield Result("logits", ours, some, tolerance)


def _draws(device: torch.device, dtype: torch.dtype) -> Iterator[Result]:
    """Ids, which are the same on every device, and their log counts."""
    numbers = _Numbers()
    q = torch.rand(C, generator=numbers.generator, dtype=torch.float64, device="cpu")
    q[5] = 0.0
    q /= q.sum()
    table = weighted(alias_table.build_alias_table(q), q.view(torch.int64), C - 1)
    key, target = torch.tensor([-3, 5], device="cpu"), numbers.ids(B)
    for name, proposal in (("uniform", uniform(C)), ("log uniform", log_uniform(C)),
                           ("weighted", table)):  # fmt: skip
        for method in Method:
            how = (_DRAWN, int(method), None)
            theirs = draws.sample(proposal, key, target, *how)
            ours = operators.sample(*_moved((key, target, *proposal, *how), device))
            yield from _drawn(f"{name} draws", ours, theirs)
        tries = torch.tensor(200.0, dtype=torch.float64, device="cpu")
        counts = draws.log_counts(proposal, target, S, tries)
        ours = operators.log_counts(*_moved((target, *proposal, S, tries), device))
        drawn = counts != -torch.inf
        yield Result(f"{name} log counts", ours.cpu()[drawn], counts[drawn], _COUNT_TOLERANCE)
    some, exclude = numbers.ids(9, 1), numbers.ids(9, 2, least=-1)
    for method in Method:
        rows = (_SAMPLES_OF_ROWS, int(method), None, exclude, True)
        theirs = draws.sample(table, key, some, *rows)
        ours = operators.sample(*_moved((key, some, *table, *rows), device))
        yield from _drawn("draws of rows", ours, theirs)


def _drawn(name: str, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Iterator[Result]:
    yield Result(f"{name}: ids", ours[0], theirs[0], 0.0)
    yield Result(f"{name}: log counts of ids", ours[2], theirs[2], _COUNT_TOLERANCE)
    yield Result(f"{name}: log counts of targets", ours[3], theirs[3], _COUNT_TOLERANCE)


def _updates(device: torch.device, dtype: torch.dtype) -> Iterator[Result]:
    """A step of each optimizer, and what the other rows owe for it."""
    roundings: dict[Rule, Rounding] = dict.fromkeys(Rule, "nearest")
    if dtype.itemsize == 2:
        roundings |= {Rule.ADAM: "stochastic", Rule.ADAGRAD: "kahan"}
    for rule, rounding in roundings.items():
        ours, theirs = (_update(rule, rounding, dtype, place) for place in (device, None))
        for what, a, b in zip(("a step", "debts"), ours, theirs, strict=False):
            name = f"{what} of {rule.name}, rounded to {rounding}"
            for field in ("param", "first", "second", "compensation", "last_step"):
                x, y = getattr(a, field), getattr(b, field)
                if x is not None:
                    yield Result(f"{name}: {field}", x, y, _TOLERANCE[dtype])


def _update(
    rule: Rule, rounding: Rounding, dtype: torch.dtype, device: torch.device | None
) -> Iterator[RowUpdate]:
    """One parameter as it is after each of its updates; None: by the reference."""
    numbers = _Numbers()
    param = numbers.normal(C, D, dtype=dtype)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    debts = not rule.adagrad
    options = UpdateOptions(
        rule, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, decay=0.01 if debts else 0.0, replay=debts
    )
    history = torch.zeros(HISTORY_COLUMNS, 64, dtype=torch.float64, device="cpu")
    history[[3, 6], 0] = 1.0  # SGD's product of no matrices
    shape = (C,) if rule.row_wise else (C, D)
    update = RowUpdate(
        options,
        param,
        torch.zeros((), dtype=torch.float32, device="cpu"),
        first=None if rule.adagrad else numbers.normal(C, D, dtype=state),
        second=None if rule == Rule.SGD else numbers.normal(*shape, dtype=state).square(),
        compensation=torch.zeros_like(param) if rounding == "kahan" else None,
        last_step=torch.zeros(C, dtype=torch.int32, device="cpu") if debts else None,
        history=history if debts else None,
        horizon=32 if debts else 0,
        rounding=rounding,
        seed=11,
    )
    place = torch.device("cpu") if device is None else device
    tensors = {name: getattr(update, name) for name in update.__dataclass_fields__}
    moved: dict[str, Any] = {
        name: x.to(place) for name, x in tensors.items() if isinstance(x, Tensor)
    }
    update = replace(update, **moved)
    step: Callable[[RowUpdate], None] = row_update if device is None else call_row_update
    ids, order = numbers.ids(B, most=C // 2).sort(stable=True)
    values = numbers.normal(B, D, dtype=dtype)
    values, ids, order = (x.to(place) for x in (values, ids, order))
    step(replace(update, values=values, ids=ids, order=order))
    yield update
    if debts:
        step(update)
        yield update


FAMILIES: dict[str, Callable[[torch.device, torch.dtype], Iterator[Result]]] = {
    "draws": _draws,
    "loss": _loss,
    "negatives": _negatives,
    "exact": _exact,
    "updates": _updates,
}


def dtypes_of(family: str) -> tuple[torch.dtype, ...]:
    """The dtypes that a family is checked in."""
    return DTYPES if family != "draws" else (torch.int64,)

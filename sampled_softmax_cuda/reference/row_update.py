"""Steps of optimizers for rows, with the bits of csrc/core/row_update.h, where the formulas are
explained; each function here is the twin of the one of that name there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._philox import philox_bits
from ..updates import RowUpdate, Rule, UpdateOptions
from .portable_math import portable_expm1, portable_log

# Columns of a history.
_LOG_KEEP, _LOG_BETA1, _LOG_BETA2, _MOVES = range(4)
_SUM_WIDTH = 128
_PARAM, _FIRST, _SECOND = range(3)  # arrays with random bits of their own


def _double(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def _decayed(y: Tensor) -> Tensor:
    return portable_expm1(y) + 1.0


def _floored_log(x: float) -> float:
    return float(portable_log(_double(max(x, 1e-300))))


def _root(x: Tensor) -> Tensor:
    """sqrt(x), rounded correctly for float32, which torch's own on the CPU is not; float64 may be
    off by one in the last place."""
    return x.double().sqrt().to(x.dtype)


class _Step(NamedTuple):
    """The numbers of one step."""

    step: int
    lr: float
    step_size: float
    root_scale: float
    eps: float
    keep: float
    fresh1: float
    fresh2: float


def _bias_correction(beta: float, step: int) -> float:
    if beta <= 0:
        return 1.0
    return -float(portable_expm1(float(step) * portable_log(_double(beta))))


def _step_scalars(o: UpdateOptions, step: int) -> _Step:
    lr = float(o.lr)
    step_size, root_scale, eps, fresh1 = lr, 1.0, o.eps, 1.0
    if o.rule == Rule.SGD:
        fresh1 = 1.0 if step == 1 else 1.0 - o.dampening
    elif o.rule.adagrad:
        step_size = lr / (1.0 + (step - 1) * o.lr_decay)
    else:
        fresh1 = 1.0 - o.beta1
        step_size = lr / _bias_correction(o.beta1, step)
        root_scale = 1.0 / math.sqrt(_bias_correction(o.beta2, step))
        eps = o.eps * root_scale if o.plain_eps else o.eps
    return _Step(step, lr, step_size, root_scale, eps, 1.0 - lr * o.decay, fresh1, 1.0 - o.beta2)


# --- the history ----------------------------------------------------------------------------------


def _sgd_matrix(o: UpdateOptions, s: _Step) -> tuple[float, float, float, float]:
    """A step of SGD without gradient: p' = pp p + pm m, m' = mp p + mm m."""
    mp = s.fresh1 * o.l2
    direct, through = (o.l2, o.beta1) if o.nesterov else (0.0, 1.0)
    return 1.0 - s.lr * (direct + through * mp), -(s.lr * (through * o.beta1)), mp, o.beta1


def _close(u: RowUpdate, s: _Step) -> None:
    """Write step s into the history, and what it adds to the debts of the steps before."""
    o, h = u.options, u.history
    assert h is not None
    capacity = h.shape[1]
    now, before = h[:, s.step % capacity], h[:, (s.step - 1) % capacity]
    now[_LOG_BETA1] = before[_LOG_BETA1] + _floored_log(o.beta1)
    if o.rule == Rule.SGD:
        pp, pm, mp, mm = _sgd_matrix(o, s)
        ratio = float(before[_LOG_BETA2])
        factor = max(pp + pm * ratio, math.sqrt(o.beta1))
        now[_LOG_KEEP] = before[_LOG_KEEP] + _floored_log(factor)
        now[_LOG_BETA2] = (mp + mm * ratio) / factor
        now[_MOVES:] = now.new_tensor([1.0, 0.0, 0.0, 1.0])
    else:
        now[_LOG_KEEP] = before[_LOG_KEEP] + _floored_log(s.keep)
        now[_LOG_BETA2] = before[_LOG_BETA2] + _floored_log(o.beta2)
        now[_MOVES : _MOVES + 2] = 0.0
    if not o.replay:
        return
    steps = torch.arange(max(s.step - u.horizon, 0), s.step, device=h.device) % capacity
    if o.rule == Rule.SGD:
        m_pp, m_pm, m_mp, m_mm = h[_MOVES:, steps]
        h[_MOVES, steps] = pp * m_pp + pm * m_mp
        h[_MOVES + 1, steps] = pp * m_pm + pm * m_mm
        h[_MOVES + 2, steps] = mp * m_pp + mm * m_mp
        h[_MOVES + 3, steps] = mp * m_pm + mm * m_mm
        return
    n = s.step_size * _decayed(now[_LOG_BETA1] - h[_LOG_BETA1, steps])
    inverse = 1.0 / (_decayed((now[_LOG_BETA2] - h[_LOG_BETA2, steps]) * 0.5) * s.root_scale)
    moved = n * inverse
    h[_MOVES, steps] = s.keep * h[_MOVES, steps] + moved
    h[_MOVES + 1, steps] = s.keep * h[_MOVES + 1, steps] + moved * inverse


class _Debt(NamedTuple):
    """The debts of rows, each [N, 1] float64."""

    keep: Tensor
    beta1: Tensor
    beta2: Tensor
    moves: Tensor
    eps_share: Tensor
    mixed: Tensor


def _row_debt(u: RowUpdate, paid: Tensor, step: int) -> _Debt:
    """The debts at `step` of rows that have paid up to the steps `paid` [N]."""
    o, h = u.options, u.history
    assert h is not None
    capacity = h.shape[1]
    at = paid % capacity
    now = h[:, step % capacity]
    one = torch.ones_like(h[0, at])
    zero = torch.zeros_like(one)

    def since(column: int, index: Tensor) -> Tensor:
        return _decayed(now[column] - h[column, index])

    keep, beta1 = since(_LOG_KEEP, at), since(_LOG_BETA1, at)
    beta2 = one if o.rule == Rule.SGD else since(_LOG_BETA2, at)
    moves, eps_share, mixed = zero, zero, zero
    if o.replay:
        first, second, third, fourth = h[_MOVES:, at]
        near = step - paid <= u.horizon
        # min: what lies beyond the horizon of a near row isn't looked at
        horizon_end = torch.minimum(paid + u.horizon, torch.full_like(paid, step)) % capacity
        later = torch.where(near, one, since(_LOG_KEEP, horizon_end))
        if o.rule == Rule.SGD:
            ratio = now[_LOG_BETA2]
            far_keep, far_moves = later * first, later * second
            keep = torch.where(near, first, far_keep)
            moves = torch.where(near, -second, -far_moves)
            beta1 = torch.where(near, fourth, ratio * far_moves)
            mixed = torch.where(near, third, ratio * far_keep)
        else:
            moves = later * first
            eps_share = torch.where(first == 0, zero, o.eps * (second / first))
    return _Debt(*(x[:, None] for x in (keep, beta1, beta2, moves, eps_share, mixed)))


# --- storage --------------------------------------------------------------------------------------


def _random_halves(u: RowUpdate, step: int, rows: Tensor, dim: int, array: int) -> Tensor:
    """The 16 random bits of each element of rows, int64 [N, dim]."""
    offset = (step << 24) + (array << 22)
    key = torch.tensor([u.seed, offset], device=rows.device)
    draws = philox_bits(key, 0, (dim + 3) // 4, subsequence=rows)
    halves = torch.stack([(draws >> shift) & 0xFFFF for shift in (0, 16, 32, 48)], dim=-1)
    return halves.flatten(1)[:, :dim]


def _to_bf16(x: Tensor, random: Tensor) -> Tensor:
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    size = bits & 0x7FFFFFFF
    rounded = torch.where(size == 0x7F800000, bits >> 16, (bits + random) >> 16)
    rounded = torch.where(size > 0x7F800000, (bits >> 16) | 0x40, rounded)
    return rounded.to(torch.int16).view(torch.bfloat16)


def _to_fp16(x: Tensor, random: Tensor) -> Tensor:
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    normal = (size + (random >> 3) - 0x38000000) >> 13
    exponent = size >> 23
    mantissa = (size & 0x7FFFFF) | 0x800000
    fixed = (mantissa << 16) >> (126 - exponent).clamp(min=0)
    small = torch.where(exponent < 87, torch.zeros_like(size), (fixed + random) >> 16)
    rounded = torch.where(size >= 0x38800000, normal, small)
    rounded = torch.where(size >= 0x47800000, torch.full_like(size, 0x7C00), rounded)
    rounded = torch.where(size > 0x7F800000, torch.full_like(size, 0x7E00), rounded)
    return (sign | rounded).to(torch.int16).view(torch.float16)


class _Rows:
    """Rows of the arrays of an update, as numbers of the arithmetic's dtype, and back."""

    def __init__(self, u: RowUpdate, rows: Tensor, step: int) -> None:
        self.u, self.rows, self.step = u, rows, step

    def read(self, array: Tensor) -> Tensor:
        """[N, D]"""
        return array.reshape(len(array), -1)[self.rows].to(self.u.dtype)

    def write(self, array: Tensor, values: Tensor, which: int, stochastic: bool) -> None:
        stored = values
        if array.dtype != values.dtype:
            stored = values.to(array.dtype)
            if stochastic:
                convert: Callable[[Tensor, Tensor], Tensor] = (
                    _to_bf16 if array.dtype == torch.bfloat16 else _to_fp16
                )
                dim = values.shape[1]
                stored = convert(values, _random_halves(self.u, self.step, self.rows, dim, which))
        array[self.rows] = stored.view(len(stored), *array.shape[1:])

    def read_param(self) -> Tensor:
        p = self.read(self.u.param)
        return p if self.u.compensation is None else p + self.read(self.u.compensation)

    def write_param(self, values: Tensor) -> None:
        u = self.u
        self.write(u.param, values, _PARAM, u.rounding == "stochastic")
        if u.compensation is not None:
            self.write(u.compensation, values - self.read(u.param), _PARAM, False)


def _mean_square(g: Tensor) -> Tensor:
    """[N, 1], summed in the order of the kernels."""
    rows, dim = g.shape
    square = g * g
    whole = -(-max(dim, 1) // _SUM_WIDTH) * _SUM_WIDTH
    parts = torch.nn.functional.pad(square, (0, whole - dim)).view(rows, -1, _SUM_WIDTH)
    sums = torch.zeros_like(parts[:, 0])
    for part in parts.unbind(1):
        sums = sums + part
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums / float(dim)


# --- the step -------------------------------------------------------------------------------------


class _Numbers(NamedTuple):
    """Rows as numbers, each [N, D]; v of row-wise rules [N, 1]."""

    p: Tensor
    m: Tensor | None
    v: Tensor | None


def row_update(u: RowUpdate) -> None:
    """`row_update` of the operators: a step with values, a payment of debts without."""
    if u.found_inf is not None and float(u.found_inf) != 0:
        return
    before = int(u.step)
    step = before if u.values is None else before + 1
    rows, places = _rows_of(u)
    if u.values is None:
        assert u.last_step is not None
        rows = rows[u.last_step[rows] < step]
    state = _Rows(u, rows, step)
    s = _step_scalars(u.options, step)
    if len(rows) > 0 and u.param.numel() > 0:
        x = _Numbers(
            state.read_param(),
            None if u.first is None else state.read(u.first),
            None if u.second is None else state.read(u.second),
        )
        if u.last_step is not None:
            x = _pay(u, u.last_step[rows].to(torch.int64), before, x)
        if u.values is not None:
            x = _take_step(u, s, _gradients(u, len(rows), places), x)
        state.write_param(x.p)
        if u.first is not None and x.m is not None:
            state.write(u.first, x.m, _FIRST, True)
        if u.second is not None and x.v is not None:
            state.write(u.second, x.v, _SECOND, True)
    if u.last_step is not None:
        u.last_step[rows] = step
    if u.values is not None:
        if u.last_step is not None:
            _close(u, s)
        u.step.fill_(step)


def _rows_of(u: RowUpdate) -> tuple[Tensor, Tensor]:
    """The distinct rows, and which of them each id is."""
    if u.ids is None:
        rows = torch.arange(len(u.param), device=u.param.device)
        return rows, rows
    inside = (u.ids >= 0) & (u.ids < len(u.param))
    rows, places = torch.unique(u.ids[inside], return_inverse=True)
    return rows, places


def _gradients(u: RowUpdate, rows: int, places: Tensor) -> Tensor:
    """[N, D], with the repeats of a row added up in their order."""
    assert u.values is not None
    values = u.values.reshape(len(u.values), -1).to(u.dtype)
    if u.ids is not None:
        positions = torch.arange(len(u.ids), device=u.ids.device) if u.order is None else u.order
        values = values[positions[(u.ids >= 0) & (u.ids < len(u.param))]]
    return torch.zeros_like(values[:rows]).index_add_(0, places, values)


def _pay(u: RowUpdate, paid: Tensor, step: int, x: _Numbers) -> _Numbers:
    """Pay what rows owe at `step` that have paid up to the steps `paid` [N]."""
    owes = (paid < step)[:, None]
    debt = _row_debt(u, paid, step)
    keep, beta1, beta2, moves, eps_share, mixed = (part.to(u.dtype) for part in debt)
    p, m, v = x.p * keep, x.m, x.v
    if u.options.rule == Rule.SGD:
        if x.m is not None:
            p = p - x.m * moves
            m = torch.where(owes, x.m * beta1 + x.p * mixed, x.m)
        return _Numbers(torch.where(owes, p, x.p), m, v)
    assert x.m is not None and x.v is not None
    moved = p - (x.m * moves) / (_root(x.v) + eps_share)
    p = torch.where(debt.moves != 0, moved, p)
    m, v = torch.where(owes, x.m * beta1, x.m), torch.where(owes, x.v * beta2, x.v)
    return _Numbers(torch.where(owes, p, x.p), m, v)


def _take_step(u: RowUpdate, s: _Step, g: Tensor, x: _Numbers) -> _Numbers:
    o = u.options
    p, m, v = x
    scale = -1.0 if o.maximize else 1.0
    g = g * (scale if u.grad_scale is None else scale / float(u.grad_scale))
    if o.l2 != 0:
        g = g + p * o.l2
    if o.rule == Rule.SGD:
        if m is not None:
            m = m * o.beta1 + g * s.fresh1
            g = g + m * o.beta1 if o.nesterov else m
        return _Numbers(p - g * s.step_size, m, v)
    assert v is not None
    square = _mean_square(g) if o.rule.row_wise else g * g
    v = v * o.beta2 + square * s.fresh2 if o.rule.adam else v + square
    if o.rule.adagrad:
        return _Numbers(p - (g * s.step_size) / (_root(v) + s.eps), m, v)
    assert m is not None
    m = m + (g - m) * s.fresh1
    p = p * s.keep - (m * s.step_size) / (_root(v) * s.root_scale + s.eps)
    return _Numbers(p, m, v)


def gradient_faults(values: Tensor, ids: Tensor | None, rows: int, finite: bool) -> tuple[int, int]:
    """`gradient_faults` of the operators."""

    def first(faults: Tensor) -> int:
        return int(faults.nonzero()[0]) if bool(faults.any()) else -1

    bad_id = -1 if ids is None else first((ids < 0) | (ids >= rows))
    if not finite or values.numel() == 0:
        return bad_id, -1
    return bad_id, first(~values.isfinite().reshape(len(values), -1).all(1))

"""Steps of optimizers for rows: the operator, or the reference where it has no kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._build import operator_name
from ..updates import RowUpdate
from .dispatch import native_serves
from .library import library_loaded, native_for, operators

_ROUNDING = {"nearest": 0, "stochastic": 1, "kahan": 2}


def _number(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().double().reshape(())


def row_update(update: RowUpdate) -> None:
    """Take the step, or pay the debts, in place; autograd sees nothing of it."""
    if native_serves("row_update", update.param, update.param.dtype):
        call_row_update(update)
    else:
        reference.row_update(update)


def call_row_update(update: RowUpdate) -> None:
    """The operator `row_update`."""
    o = update.options
    lr, lr_tensor = (0.0, _number(o.lr)) if isinstance(o.lr, Tensor) else (o.lr, None)
    operators.row_update(
        update.param,
        update.values,
        update.ids,
        update.order,
        update.first,
        update.second,
        update.compensation,
        update.last_step,
        update.history,
        update.horizon,
        update.step,
        int(o.rule),
        lr,
        lr_tensor,
        o.beta1,
        o.beta2,
        o.eps,
        o.l2,
        o.decay,
        o.lr_decay,
        o.dampening,
        o.nesterov,
        o.maximize,
        o.replay,
        o.plain_eps,
        _ROUNDING[update.rounding],
        update.seed,
        _number(update.grad_scale),
        _number(update.found_inf),
    )


def gradient_faults(values: Tensor, ids: Tensor | None, rows: int, finite: bool) -> tuple[int, int]:
    """Where a gradient on the CPU can't be used.

    Args:
        values: [N, ...], contiguous.
        ids: [N] int64 or None.
        rows: C.
        finite: look for inf and NaN.

    Returns:
        The first position of ids outside [0, C), and the first row of values that isn't finite; −1
        for none.
    """
    if native_for(values.device, "gradient_faults"):
        bad_id, nonfinite = operators.gradient_faults(values, ids, rows, finite)
        return bad_id, nonfinite
    return reference.gradient_faults(values, ids, rows, finite)


# --- what PyTorch needs to know of the operators --------------------------------------------------


def _fake_row_update(*_: Any) -> None:
    return None


if library_loaded():
    torch.library.register_fake(operator_name("row_update"), _fake_row_update)

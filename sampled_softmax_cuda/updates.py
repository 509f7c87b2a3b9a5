"""One step of an optimizer for rows of a parameter: the rules, their options and their tensors.

The formulas are in csrc/core/row_update.h, and in PyTorch in `sampled_softmax_cuda.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

Skipped = Literal["decay", "freeze", "replay"]
Rounding = Literal["nearest", "stochastic", "kahan"]

# Columns of a history: csrc/core/row_update.h.
HISTORY_COLUMNS = 7


class Rule(IntEnum):
    """The rule of an update, by the number that the operators know it by."""

    SGD = 0
    ADAGRAD = 1
    ROW_WISE_ADAGRAD = 2
    ADAM = 3
    ROW_WISE_ADAM = 4

    @property
    def row_wise(self) -> bool:
        """Whether the squares of a row have one number together."""
        return self in (Rule.ROW_WISE_ADAGRAD, Rule.ROW_WISE_ADAM)

    @property
    def adam(self) -> bool:
        return self in (Rule.ADAM, Rule.ROW_WISE_ADAM)

    @property
    def adagrad(self) -> bool:
        return self in (Rule.ADAGRAD, Rule.ROW_WISE_ADAGRAD)


@dataclass(frozen=True, slots=True)
class UpdateOptions:
    """The numbers of a step, the same for all rows.

    Attributes:
        beta1: of the first moment; SGD's momentum.
        l2: weight decay that is added to the gradient.
        decay: decoupled weight decay.
        replay: rows owe the moves of steps without gradient too.
        plain_eps: eps beside sqrt(v), as SparseAdam has it, not beside sqrt(v / bias correction).
    """

    rule: Rule
    lr: float | Tensor
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    l2: float = 0.0
    decay: float = 0.0
    lr_decay: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    replay: bool = False
    plain_eps: bool = False


@dataclass(frozen=True, slots=True)
class RowUpdate:
    """A parameter, its state and the rows that an update is about.

    Attributes:
        param: [C, D] or [C], with unit stride along D; changed in place, as all states are.
        step: float32 [], the steps so far.
        values: [N, D], the gradients; None: rows only pay what they owe.
        ids: [N] int64, in rising order where there are values; None: all rows.
        order: [N] int64, where the gradient of ids[n] is in values; None: at n.
        first: like param, or None; float32 or bfloat16, float64 for a float64 parameter.
        second: like first; for row-wise rules [C], float32 or float64.
        compensation: like param: what rounding took away, with rounding="kahan".
        last_step: int32 [C], the step up to which each row has paid; None: rows never owe.
        history: float64 [HISTORY_COLUMNS, steps], with last_step.
        horizon: the steps for which a debt grows term by term.
        grad_scale: a number that gradients are divided by, or None.
        found_inf: a number; unless it is 0, nothing happens. Or None.
        rounding: of a 16-bit parameter.
        seed: of its stochastic rounding, 64 bits.
    """

    options: UpdateOptions
    param: Tensor
    step: Tensor
    values: Tensor | None = None
    ids: Tensor | None = None
    order: Tensor | None = None
    first: Tensor | None = None
    second: Tensor | None = None
    compensation: Tensor | None = None
    last_step: Tensor | None = None
    history: Tensor | None = None
    horizon: int = 0
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    rounding: Rounding = "nearest"
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """That of the arithmetic."""
        return torch.float64 if self.param.dtype == torch.float64 else torch.float32

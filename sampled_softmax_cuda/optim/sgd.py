"""Stochastic gradient descent on row-sparse gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..updates import Rounding, Rule, Skipped, UpdateOptions
from .base import RowOptimizer


class SGD(RowOptimizer):
    """torch.optim.SGD, whose step costs as much as the rows that have a gradient.

    With momentum torch's moves every row that was ever touched, in each step. Here a row that isn't
    touched catches up when it is needed; `skipped` says with what.

    Args:
        params: parameters or groups of them; with gradients that are dense or row-sparse.
        lr: learning rate, a number or a tensor of one. Default 1e-3.
        momentum: in [0, 1). Default 0.
        dampening: as torch's. Default 0.
        weight_decay: added to the gradient as weight_decay * weight. Default 0.
        nesterov: as torch's; needs a momentum and no dampening.
        maximize: climb.
        skipped: for a row without gradient for k steps, when it has one again:
            "decay" (default): its momentum has faded by momentum^k and its weights have shrunk as
            those of the dense rule do; it has not moved along its momentum meanwhile. "freeze":
            nothing has happened. "replay": exactly what the dense rule would have done, for any
            schedule; rows are brought up to date before `SampledSoftmaxLoss` reads them.
        state_dtype: of the momentum: None (float32, float64 for float64 parameters), or
            torch.bfloat16, rounded stochastically.
        rounding: of bfloat16 and float16 parameters: "nearest" (default, as torch), "stochastic",
            or "kahan", which keeps what rounding takes away, in as many bytes as the parameter.
        seed: of stochastic rounding, in [0, 2^32); ranks with one seed round alike.
        error_if_nonfinite: on the CPU a gradient with inf or NaN raises before anything is
            changed; on a GPU nothing waits for its values. Default True.
        capturable: kept for parity with torch: a step can always be captured, with lr a tensor
            if it is to change.
        foreach, fused: accepted, and nothing changes: every step is fused.

    Raises:
        ValueError, TypeError: options that don't fit, with their name and value.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> head = ssc.SampledSoftmaxLoss(16, 1000, num_samples=64, sparse_grad=True)
        >>> optimizer = ssc.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        >>> head(torch.randn(8, 16), torch.randint(1000, (8,))).backward()
        >>> optimizer.step()
    """

    rule = Rule.SGD
    first_name = "momentum_buffer"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        skipped: Skipped = "decay",
        state_dtype: torch.dtype | None = None,
        rounding: Rounding = "nearest",
        seed: int = 0,
        error_if_nonfinite: bool = True,
        capturable: bool = False,
        **of_torch: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "skipped": skipped,
            "state_dtype": state_dtype,
            "rounding": rounding,
            "seed": seed,
            "error_if_nonfinite": error_if_nonfinite,
            "capturable": capturable,
        }
        super().__init__(params, defaults, of_torch)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(f"{self._name}: nesterov=True needs a momentum and dampening=0")

    def _state_names(self, p: Tensor, group: dict[str, Any]) -> list[str]:
        names = super()._state_names(p, group)
        return names if group["momentum"] > 0 else [n for n in names if n != self.first_name]

    def _options(self, group: dict[str, Any], lr: float | Tensor, sparse: bool) -> UpdateOptions:
        return UpdateOptions(
            self.rule,
            lr,
            beta1=group["momentum"],
            l2=group["weight_decay"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            replay=group["skipped"] == "replay",
        )

    def _owes(self, group: dict[str, Any]) -> bool:
        return bool(group["momentum"] > 0 or group["weight_decay"] > 0)

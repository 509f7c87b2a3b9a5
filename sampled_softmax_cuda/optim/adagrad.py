"""Adagrad on row-sparse gradients: element-wise, and with one sum for each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..updates import Rounding, Rule, UpdateOptions
from .base import RowOptimizer


class Adagrad(RowOptimizer):
    """torch.optim.Adagrad, whose step costs as much as the rows that have a gradient.

    Rows without gradient owe nothing: the rule moves none of them. With weight_decay, which torch
    refuses for sparse gradients, a row decays when it is touched.
    Duchi, Hazan, Singer: "Adaptive subgradient methods for online learning and stochastic
    optimization", JMLR 12 (2011).

    Args:
        params: parameters or groups of them; with gradients that are dense or row-sparse.
        lr: learning rate, a number or a tensor of one. Default 1e-2.
        lr_decay: step t has the rate lr / (1 + (t - 1) lr_decay). Default 0.
        weight_decay: added to the gradient as weight_decay * weight. Default 0.
        initial_accumulator_value: where the sums of squares start. Default 0; otherwise the sums of
            all rows are written once.
        eps: added to the root. Default 1e-10.
        maximize, state_dtype, rounding, seed, error_if_nonfinite, capturable: as in
            `sampled_softmax_cuda.optim.SGD`; states are the sums.

    Raises:
        ValueError, TypeError: options that don't fit, with their name and value.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> table = torch.nn.Embedding(1000, 16, sparse=True)
        >>> optimizer = ssc.optim.Adagrad(table.parameters(), lr=0.1)
        >>> table(torch.tensor([3, 7, 3])).sum().backward()
        >>> optimizer.step()
    """

    rule = Rule.ADAGRAD
    second_name = "sum"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
        rounding: Rounding = "nearest",
        seed: int = 0,
        error_if_nonfinite: bool = True,
        capturable: bool = False,
        **of_torch: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "maximize": maximize,
            "state_dtype": state_dtype,
            "rounding": rounding,
            "seed": seed,
            "error_if_nonfinite": error_if_nonfinite,
            "capturable": capturable,
        }
        super().__init__(params, defaults, of_torch)

    def _initialize(self, name: str, value: Tensor, group: dict[str, Any]) -> None:
        if name == self.second_name and group["initial_accumulator_value"] != 0:
            value.fill_(group["initial_accumulator_value"])

    def _options(self, group: dict[str, Any], lr: float | Tensor, sparse: bool) -> UpdateOptions:
        return UpdateOptions(
            self.rule,
            lr,
            eps=group["eps"],
            l2=group["weight_decay"],
            lr_decay=group["lr_decay"],
            maximize=group["maximize"],
        )


class RowWiseAdagrad(Adagrad):
    """Adagrad with one sum of squares for each row: 4 bytes of state per class.

    The sum grows by the mean of the row's squared gradients, and all of the row has the rate lr /
    (sqrt(sum) + eps): FBGEMM's exact row-wise Adagrad. Mudigere et al.: "Software-hardware
    co-design for fast and scalable training of deep learning recommendation models", ISCA 2022. A
    parameter [C] has a sum for each number, and so is Adagrad's.

    Args:
        params, lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize, rounding,
            seed, error_if_nonfinite, capturable: as in `sampled_softmax_cuda.optim.Adagrad`. The
            sums are float32, float64 for float64 parameters.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> table = torch.nn.Embedding(1000, 16, sparse=True)
        >>> optimizer = ssc.optim.RowWiseAdagrad(table.parameters(), lr=0.1)
        >>> table(torch.tensor([3, 7, 3])).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[table.weight]["sum"].shape
        torch.Size([1000])
    """

    rule = Rule.ROW_WISE_ADAGRAD

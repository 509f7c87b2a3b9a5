"""Adam and AdamW on row-sparse gradients, and with one second moment for each row."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..updates import Rounding, Rule, Skipped, UpdateOptions
from .base import RowOptimizer


class _AdamBase(RowOptimizer):
    first_name = "exp_avg"
    second_name = "exp_avg_sq"
    decoupled = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
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
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
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
        if group["skipped"] != "replay":
            return
        if group["eps"] == 0:
            raise ValueError(
                f"{self._name}: skipped='replay' needs eps > 0, or rows that never had a gradient"
                " would become 0 / 0"
            )
        beta1, beta2 = group["betas"]
        if beta1 >= math.sqrt(beta2):
            raise ValueError(
                f"{self._name}: skipped='replay' needs betas[0] < sqrt(betas[1]), or the moves of"
                f" rows without gradient grow without end, got betas=({beta1}, {beta2})"
            )
        if not self.decoupled and group["weight_decay"] > 0:
            raise ValueError(
                f"{self._name}: skipped='replay' needs weight_decay=0, because a decay that goes"
                " through the moments has no sum in closed form: use AdamW, or skipped='decay'"
            )

    def _options(self, group: dict[str, Any], lr: float | Tensor, sparse: bool) -> UpdateOptions:
        decay = group["weight_decay"]
        return UpdateOptions(
            self.rule,
            lr,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            l2=0.0 if self.decoupled else decay,
            decay=decay if self.decoupled else 0.0,
            maximize=group["maximize"],
            replay=group["skipped"] == "replay",
            plain_eps=sparse and group["skipped"] == "freeze",
        )

    def _owes(self, group: dict[str, Any]) -> bool:
        return True


class AdamW(_AdamBase):
    """torch.optim.AdamW, whose step costs as much as the rows that have a gradient.

    Loshchilov, Hutter: "Decoupled weight decay regularization", ICLR 2019. Rows without gradient
    catch up when they are needed; `skipped` says with what, and docs/optim.md shows it.

    Args:
        params: parameters or groups of them; with gradients that are dense or row-sparse.
        lr: learning rate, a number or a tensor of one. Default 1e-3.
        betas: how fast the two moments fade. Default (0.9, 0.999).
        eps: added to the root. Default 1e-8.
        weight_decay: a step multiplies weights by 1 - lr weight_decay. Default 1e-2.
        skipped: for a row without gradient for k steps, when it has one again:
            "decay" (default): its moments have faded and its weights have decayed, for any schedule
            of lr and betas; it has not moved along its moments meanwhile. "freeze": nothing has
            happened, as with torch.optim.SparseAdam (with weight_decay a row decays when it is
            touched). "replay": also the moves that dense AdamW would have made, exactly without eps
            and to first order in it; rows are brought up to date before `SampledSoftmaxLoss` reads
            them.
        maximize, state_dtype, rounding, seed, error_if_nonfinite, capturable: as in
            `sampled_softmax_cuda.optim.SGD`; states are the moments.

    Raises:
        ValueError, TypeError: options that don't fit, with their name and value.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> head = ssc.SampledSoftmaxLoss(16, 1000, num_samples=64, sparse_grad=True)
        >>> optimizer = ssc.optim.AdamW(head.parameters(), lr=1e-3)
        >>> head(torch.randn(8, 16), torch.randint(1000, (8,))).backward()
        >>> optimizer.step()
        >>> optimizer.settle()  # before the weights are used elsewhere
    """

    rule = Rule.ADAM


class Adam(_AdamBase):
    """torch.optim.Adam, whose step costs as much as the rows that have a gradient.

    Kingma, Ba: "Adam: a method for stochastic optimization", ICLR 2015. weight_decay is added to
    the gradient, so that a row decays when it is touched; `AdamW` decays all.

    Args:
        params, lr, betas, eps, maximize, skipped, state_dtype, rounding, seed, error_if_nonfinite,
            capturable: as in `sampled_softmax_cuda.optim.AdamW`. skipped="replay" needs
            weight_decay=0.
        weight_decay: added to the gradient as weight_decay * weight. Default 0.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> table = torch.nn.Embedding(1000, 16, sparse=True)
        >>> optimizer = ssc.optim.Adam(table.parameters(), lr=1e-3, skipped="freeze")
        >>> table(torch.tensor([3, 7, 3])).sum().backward()
        >>> optimizer.step()
    """

    rule = Rule.ADAM
    decoupled = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **options)


class RowWiseAdam(_AdamBase):
    """AdamW with one second moment for each row: half of Adam's memory.

    The second moment follows the mean of the row's squared gradients: FBGEMM's partial row-wise
    Adam. weight_decay is decoupled.

    Args:
        params, lr, betas, eps, maximize, skipped, state_dtype, rounding, seed, error_if_nonfinite,
            capturable: as in `sampled_softmax_cuda.optim.AdamW`. Second moments are float32,
            float64 for float64 parameters.
        weight_decay: a step multiplies weights by 1 - lr weight_decay. Default 0.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> table = torch.nn.Embedding(1000, 16, sparse=True)
        >>> optimizer = ssc.optim.RowWiseAdam(table.parameters(), lr=1e-3)
        >>> table(torch.tensor([3, 7, 3])).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[table.weight]["exp_avg_sq"].shape
        torch.Size([1000])
    """

    rule = Rule.ROW_WISE_ADAM

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **options)

"""Steps of optimizers on random row-sparse gradients, the same for several optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import sampled_softmax_cuda as ssc

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def row_gradients(
    shape: tuple[int, ...],
    steps: int,
    rows: int = 6,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """Sparse gradients of parameters [C, ...], with repeats among their rows."""
    generator = torch.Generator().manual_seed(seed)
    gradients = []
    for _ in range(steps):
        ids = torch.randint(shape[0], (rows,), generator=generator)
        values = torch.randn(rows, *shape[1:], generator=generator, dtype=torch.float64).to(dtype)
        gradients.append(sparse(ids, values, shape))
    return gradients


def sparse(ids: Tensor, values: Tensor, shape: Iterable[int]) -> Tensor:
    """An uncoalesced row-sparse tensor, on the default device."""
    device = torch.get_default_device()
    return torch.sparse_coo_tensor(
        ids[None].to(device), values.to(device), tuple(shape), check_invariants=True
    )


def parameter(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> nn.Parameter:
    """The same numbers on every device."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return nn.Parameter(start.to(dtype).to(torch.get_default_device()))


def trained(
    make: Make,
    gradients: list[Tensor],
    dtype: torch.dtype = torch.float64,
    dense: bool = False,
    change: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """A parameter after one step for each gradient.

    Args:
        dense: gradients are made dense first.
        change: called with the step and the parameter group before each step.
    """
    p = parameter(tuple(gradients[0].shape), dtype)
    optimizer = make([p])
    for step, gradient in enumerate(gradients):
        if change is not None:
            change(step, optimizer.param_groups[0])
        p.grad = gradient.to_dense() if dense else gradient.clone()
        optimizer.step()
    return p, optimizer


# The optimizers.
KINDS: list[Any] = [
    ssc.optim.SGD,
    ssc.optim.Adagrad,
    ssc.optim.RowWiseAdagrad,
    ssc.optim.Adam,
    ssc.optim.AdamW,
    ssc.optim.RowWiseAdam,
]
EXACT: dict[str, Any] = {"lr": 0.01, "eps": 1e-300, "weight_decay": 0.1}


def make_head(**options: Any) -> ssc.SampledSoftmaxLoss:
    """A head in float64, the same each time."""
    torch.manual_seed(0)
    return ssc.SampledSoftmaxLoss(8, 200, 16, dtype=torch.float64, **options)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Input and target of a step of that head, the first row ignored."""
    torch.manual_seed(step)
    h, target = torch.randn(6, 8, dtype=torch.float64), torch.randint(200, (6,))
    target[0] = -100
    return h, target

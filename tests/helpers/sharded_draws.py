"""Shared by the tests of draws on several ranks: weights, batches, and the draw of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sampled_softmax_cuda.distributed import ShardedSampledSoftmaxLoss
from sampled_softmax_cuda.distributed.call import Agreed, Batch
from sampled_softmax_cuda.distributed.drawn import Drawn
from sampled_softmax_cuda.distributed.draws import draw_step
from sampled_softmax_cuda.samplers.base import DrawOptions

D = 5


def weights(classes: int) -> Tensor:
    """Zipf's, with some that never come."""
    w = 1.0 / torch.arange(1, classes + 1, dtype=torch.float64)
    w[4::7] = 0.0
    return w


def batches(classes: int, size: int, rank: int | None = None, step: int = 0) -> Any:
    """Rows and targets of a rank, or of all; ranks have other numbers of rows, some none."""
    g = torch.Generator().manual_seed(step)
    rows = [(3, 0, 5, 1)[r % 4] for r in range(size)]
    h = torch.randn(sum(rows), D, generator=g, dtype=torch.float64)
    target = torch.randint(classes, (sum(rows),), generator=g)
    target[-1] = -100
    if rank is None:
        return h, target
    begin = sum(rows[:rank])
    return h[begin : begin + rows[rank]], target[begin : begin + rows[rank]]


def drawn_before(head: ShardedSampledSoftmaxLoss, h: Tensor, target: Tensor) -> Drawn:
    """The draw of the next step."""
    rows = torch.tensor([h.shape[0]])
    sizes = head.layout.ranks.gather(rows, "rows").flatten().tolist()
    return draw_step(
        head.sampler,
        head.draw,
        DrawOptions(head.num_samples, head.replacement, "expected"),
        head.layout,
        Batch(h, target[:, None], None, None, h.shape[:-1]),
        Agreed(sizes, [sum(sizes)], sum(sizes)),
        head.padding_idx,
        (head._seed, head._step),
        None,
    )

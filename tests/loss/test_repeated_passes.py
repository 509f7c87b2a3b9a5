"""Samplers that learn, when a forward pass is repeated (checkpointing), or when several forward
passes come before one backward pass; docs/samplers.md says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sampled_softmax_cuda as ssc

C, D, B, S = 50, 8, 6, 10


class Model(nn.Module):
    def __init__(self, sampler: ssc.Sampler, **options: Any) -> None:
        super().__init__()
        self.body = nn.Linear(D, D)
        self.head = ssc.SampledSoftmaxLoss(D, C, S, sampler=sampler, **options)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.head(self.body(x), target).sum()


def counting() -> ssc.StreamingSampler:
    """Draws from the counts of now."""
    return ssc.StreamingSampler(C, update_on_sample=True, staleness=0.0)


def train(
    sampler: ssc.Sampler, reentrant: bool | None, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """The state of a sampler after three steps, and their gradients; with `reentrant`,
    checkpointed."""
    torch.manual_seed(0)
    model = Model(sampler, **options)
    grads = []
    for _ in range(3):
        x, target = torch.randn(B, D, requires_grad=True), torch.randint(C, (B,))
        model.zero_grad()
        if reentrant is None:
            loss = model(x, target)
        else:
            loss = checkpoint(model, x, target, use_reentrant=reentrant)
        loss.backward()
        grads += [p.grad for p in (x, *model.parameters())]
    return list(sampler.state_dict().values()), grads


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (counting, {}),
        (counting, {"reduction": "none"}),
        (counting, {"per_row": True}),
        (counting, {"objective": "nce", "replacement": False}),
        (lambda: ssc.InBatchSampler(counting()), {}),
        (lambda: ssc.QueueSampler(30), {"reduction": "none"}),
        (lambda: ssc.MixedSampler([ssc.QueueSampler(30), ssc.UniformSampler(C)]), {}),
        (
            lambda: ssc.InBatchSampler(
                ssc.StreamingSampler(mode="interval", num_buckets=64, update_on_sample=True)
            ),
            {},
        ),
    ],
    ids=["counts", "none", "per row", "nce", "in-batch", "queue", "mixed", "interval"],
)
def test_checkpointing_counts_targets_once(
    either: str, make: Callable[[], ssc.Sampler], options: dict[str, Any], reentrant: bool
) -> None:
    state, grads = train(make(), None, **options)
    again, same = train(make(), reentrant, **options)
    for a, b in zip(again, state, strict=True):
        assert torch.equal(a, b)
    # A pool has taken the batch in by then, and gives other negatives.
    if make is counting:
        for a, b in zip(same, grads, strict=True):
            assert torch.equal(a, b)


def test_passes_that_pile_up(compiled: str) -> None:
    """The kernels draw a row's own negatives again in the backward pass, from the same table."""
    target = torch.randint(C, (B,))
    model = Model(counting(), per_row=True)
    losses = [model(torch.randn(B, D), target) for _ in range(2)]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(losses).backward()
    # A backward pass after each, an update afterwards, and stored ids are the ways out.
    for _ in range(2):
        model(torch.randn(B, D), target).backward()
    model = Model(ssc.StreamingSampler(C, staleness=0.0), per_row=True)
    sum(model(torch.randn(B, D), target) for _ in range(2)).backward()
    model.head.sampler.update(target)
    sampler, weight = counting(), torch.randn(C, D, requires_grad=True)
    h = torch.randn(B, D)
    losses = [
        ssc.sampled_softmax_loss(h, weight, target, sampler.sample(target, S, per_row=True))
        for _ in range(2)
    ]
    sum(losses).backward()

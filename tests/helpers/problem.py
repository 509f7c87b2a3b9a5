"""Arguments of the loss, made from a seed: for the plain softmax, and with every option."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import sampled_softmax_cuda as ssc

SHAPES: dict[str, tuple[int, int, int, int]] = {
    # B, D, C, S
    "one of everything": (1, 1, 1, 1),
    "odd, less than a vector": (7, 33, 129, 20),
    "more samples than classes": (5, 16, 3, 40),
    "whole tiles": (64, 64, 1000, 256),
    "a tail in every dimension": (131, 123, 507, 389),
    "one row, many samples": (1, 257, 4097, 1500),
}
"""Shapes by what they are for: each is a way in which a blocked kernel can go wrong."""


@dataclass(eq=False)
class Problem:
    """Arguments of the loss; input, weight and bias are leaves that want a gradient."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    samples: ssc.Samples
    options: dict[str, Any] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another dtype, as new leaves."""
        cast = [
            None if t is None else t.detach().to(dtype, copy=True).requires_grad_()
            for t in (self.input, self.weight, self.bias)
        ]
        assert cast[0] is not None and cast[1] is not None
        return replace(self, input=cast[0], weight=cast[1], bias=cast[2])

    @property
    def leaves(self) -> list[Tensor]:
        """input, weight and, if there is one, bias."""
        return [t for t in (self.input, self.weight, self.bias) if t is not None]

    def loss(self, function: Any = ssc.sampled_softmax_loss, /, **more: Any) -> Any:
        """`sampled_softmax_loss` of this problem, with its options and `more`."""
        options = {**self.options, **more}
        return function(
            self.input, self.weight, self.target, self.samples, bias=self.bias, **options
        )

    def reference(self, **more: Any) -> Any:
        """`reference.sampled_softmax_loss` of this problem."""
        return self.loss(ssc.reference.sampled_softmax_loss, **more)


def make_problem(
    num_rows: int,
    width: int,
    num_classes: int,
    num_samples: int,
    *,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    counts: bool = True,
    ignored: int = 0,
    ignore_index: int = -100,
    seed: int = 0,
) -> Problem:
    """A problem with repeated samples and accidental hits; its first `ignored` rows do not count.

    The numbers are the same on every device; the tensors are on torch's default device.

    Logits have a standard deviation of about 1 whatever the width. The numbers are representable in
    `dtype`, so that truth and computation start from the same.
    """
    device = torch.get_default_device()
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, device="cpu").to(device)

    def classes(count: int) -> Tensor:
        return torch.randint(num_classes, (count,), generator=g, device="cpu").to(device)

    h = normal(num_rows, width)
    w = normal(num_classes, width) / width**0.5
    b = normal(num_classes)
    target, ids = classes(num_rows), classes(num_samples)
    ids[: num_rows // 2] = target[: min(num_rows // 2, num_samples)]
    log_count = normal(num_samples) if counts else None
    target_log_count = normal(num_rows) if counts else None
    target[:ignored] = ignore_index
    problem = Problem(
        h, w, b if bias else None, target, ssc.Samples(ids, log_count, target_log_count)
    )
    return problem.to(dtype)


def make_option_problem(
    num_rows: int,
    width: int,
    num_classes: int,
    num_samples: int,
    num_targets: int | None,
    *,
    per_row: bool = False,
    num_excluded: int = 0,
    padding: bool = True,
    counts: bool = True,
    even: bool = True,
    bias: bool = True,
    seed: int = 0,
    **options: Any,
) -> Problem:
    """A problem with several targets, excluded classes and options, in float64.

    Repeated samples, hits of every target, padded lists, and rows without a target.

    Args:
        even: copies of a sample have one count, as a sampler gives them.
    """
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(num_rows, width, generator=g)
    w = torch.randn(num_classes, width, generator=g) / width**0.5
    b = torch.randn(num_classes, generator=g) if bias else None
    shape = (num_rows,) if num_targets is None else (num_rows, num_targets)
    target = torch.randint(num_classes, shape, generator=g)
    id_shape = (num_rows, num_samples) if per_row else (num_samples,)
    ids = torch.randint(num_classes, id_shape, generator=g)
    hits = target.reshape(-1)[: num_samples // 2]
    if per_row:
        ids[:, : num_samples // 2] = target.reshape(num_rows, -1)[:, :1]
    else:
        ids[: hits.numel()] = hits
    log_count = torch.randn(num_classes, generator=g)[ids] if counts else None
    if counts and not even:
        log_count = torch.randn(id_shape, generator=g)
    target_log_count = torch.randn(shape, generator=g) if counts else None
    if padding:
        target[::4] = -100
        if num_targets is not None:
            target[1::4, 1:] = -100
    if num_excluded:
        exclude = torch.randint(-1, num_classes, (num_rows, num_excluded), generator=g)
        exclude[:, 0] = ids[:, -1] if per_row else ids[-1]
        options["exclude"] = exclude
    samples = ssc.Samples(ids, log_count, target_log_count)
    return Problem(h, w, b, target, samples, options).to(torch.float64)

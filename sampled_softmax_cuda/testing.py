"""What tests of the loss share: problems, truth in float64, and how close is close enough."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _load
from .functional import sampled_softmax_loss
from .reference.functional import sampled_softmax_loss as reference_loss
from .samplers.base import Samples

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

EPSILON = {
    dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.bfloat16, torch.float16)
}
EPSILON[torch.float64] = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Problem:
    """Arguments of the loss; input, weight and bias are leaves that want a gradient."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    samples: Samples

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

    def loss(self, **options: Any) -> Any:
        """`sampled_softmax_loss` of this problem."""
        return sampled_softmax_loss(
            self.input, self.weight, self.target, self.samples, bias=self.bias, **options
        )

    def reference(self, **options: Any) -> Any:
        """`reference.sampled_softmax_loss` of this problem."""
        return reference_loss(
            self.input, self.weight, self.target, self.samples, bias=self.bias, **options
        )


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
    problem = Problem(h, w, b if bias else None, target, Samples(ids, log_count, target_log_count))
    return problem.to(dtype)


def truth(problem: Problem, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss in float64, from logits over all classes, by formulas of its own.

    Returns the loss, which is differentiable in the problem's leaves, and the details by name, with
    the "margin" by which the target beats the best sample.
    """
    temperature = options.get("temperature", 1.0)
    correction = options.get("correction", "both")
    p = problem
    keep = p.target != options.get("ignore_index", -100)
    safe = torch.where(keep, p.target, 0)
    bias = None if p.bias is None else p.bias.double()
    z_all = F.linear(p.input.double(), p.weight.double(), bias) / temperature
    z = z_all[:, p.samples.ids]
    z_target = z_all.gather(1, safe[:, None])[:, 0]
    if p.samples.log_expected_count is not None and correction != "none":
        z = z - p.samples.log_expected_count.double()
    if p.samples.target_log_expected_count is not None and correction == "both":
        z_target = z_target - p.samples.target_log_expected_count.double()
    if options.get("remove_accidental_hits", True):
        z = torch.where(p.samples.ids == safe[:, None], -torch.inf, z)
    lse = torch.cat((z_target[:, None], z), dim=1).logsumexp(dim=1)
    rows = torch.where(keep, lse - z_target, 0)
    details = {
        "lse": torch.where(keep, lse, 0),
        "target_logit": torch.where(keep, z_target, 0),
        "error": (keep & (z_target < z.amax(dim=1))).double(),
        "margin": z_target - z.amax(dim=1),
    }
    weights = options.get("sample_weight")
    weights = keep.double() if weights is None else torch.where(keep, weights.double(), 0)
    reduction = options.get("reduction", "mean")
    if reduction == "none":
        return rows * weights, details
    total = (rows * weights).sum()
    if reduction == "mean" and bool(weights.detach().any()):
        total = total / weights.sum()
    return total, details


def assert_close_to_truth(
    ours: Tensor,
    same_dtype_reference: Tensor,
    truth: Tensor,
    what: str,
    *,
    slack: float = 4.0,
    scale: float = 0.0,
) -> None:
    """err(ours) <= 2 * err(reference in the same dtype) + slack * eps * max(scale, |truth|).

    The second term is for truths that the reference meets by chance, and for rounding the result.
    `scale` is the size of the terms where the truth is a small difference of larger ones.
    """
    dtype = ours.dtype
    ours, reference = ours.detach().to_dense().double(), same_dtype_reference.detach().to_dense()
    exact = truth.detach().to_dense().double()
    assert ours.shape == exact.shape, f"{what}: shape {list(ours.shape)}, not {list(exact.shape)}"
    if exact.numel() == 0:
        return
    assert bool(torch.isfinite(ours).all()), f"{what}: not finite"
    error = (ours - exact).abs()
    reference_error = float((reference.double() - exact).abs().max())
    largest = max(scale, float(exact.abs().max()))
    limit = 2 * reference_error + slack * EPSILON[dtype] * largest
    worst = int(error.argmax())
    assert float(error.max()) <= limit, (
        f"{what} ({dtype}): error {float(error.max()):.3e} > {limit:.3e}; the reference's is"
        f" {reference_error:.3e}; worst at flat index {worst}:"
        f" {float(ours.flatten()[worst])!r}, truth {float(exact.flatten()[worst])!r}"
    )


BACKENDS = ("reference", "scalar", "avx2", "avx512", "avx512_bf16", "cuda")


def unavailable(backend: str) -> str | None:
    """Why `backend` cannot run here, or None."""
    if backend == "reference":
        return None
    if not _load.library_loaded():
        return _load.native_reason()
    if backend == "cuda":
        if not torch.cuda.is_available():
            return "no GPU"
        return None if _load.cuda_loaded() else _load.cuda_reason()
    with _environment("SSC_CPU_ISA", backend):
        try:
            torch.ops.sampled_softmax.cpu_isa()
        except RuntimeError as error:
            return str(error).splitlines()[0]
    return None


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Run with one of `BACKENDS`: the reference, the kernels of one instruction set of the CPU, or
    those of a GPU, on which tensors are made inside."""
    if backend == "reference":
        with _load.use_backend("reference"):
            yield
    elif backend == "cuda":
        with _load.use_backend("native"), torch.device("cuda"):
            yield
    else:
        with _load.use_backend("native"), _environment("SSC_CPU_ISA", backend):
            yield

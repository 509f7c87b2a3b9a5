"""A small step of every kind on a device, each against the reference: what sanitizers run.

compute-sanitizer --tool memcheck python tools/gpu_smoke.py
python tools/gpu_smoke.py --device cpu
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda import reference
from sampled_softmax_cuda.ops import self_check

# Odd sizes, more than one tile of 128 each way; one row; and widths that 16 bytes don't divide.
SHAPES = ((137, 40, 150, 1000), (1, 33, 7, 500))
TOLERANCE = {
    torch.float32: 1e-4,
    torch.float64: 1e-10,
    torch.bfloat16: 4e-2,
    torch.float16: 1e-2,
}
# Each way through the kernels of general negatives.
OPTIONS: tuple[dict[str, Any], ...] = (
    {"objective": "nce"},
    {"softcap": 5.0, "remove_accidental_hits": False},
)


def gradients(loss: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Dense gradients of the leaves."""
    return [g.to_dense() for g in torch.autograd.grad(loss, leaves)]


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference over the largest number of `theirs`."""
    scale = max(float(theirs.double().abs().max()), 1e-6)
    return float((ours.double() - theirs.double()).abs().max()) / scale


def check_step(
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    sparse: bool,
    distinct: bool,
    options: dict[str, Any],
) -> float:
    """The largest relative error of the loss and its three gradients."""
    batch, width, num_samples, classes = shape
    h = torch.randn(batch, width, device=device).to(dtype).requires_grad_()
    weight = torch.randn(classes, width, device=device).mul_(0.3).to(dtype).requires_grad_()
    bias = torch.randn(classes, device=device).to(dtype).requires_grad_()
    target = torch.randint(classes, (batch,), device=device)
    if batch > 2:
        target[1] = -100
    sampler = ssc.LogUniformSampler(classes)
    samples = sampler.sample(target, num_samples, replacement=not distinct)
    leaves = [h, weight, bias]
    arguments = (h, weight, target, samples)
    ours = ssc.sampled_softmax_loss(*arguments, bias=bias, sparse_grad=sparse, **options)
    theirs = reference.sampled_softmax_loss(*arguments, bias=bias, **options)
    pairs = [(ours, theirs)]
    pairs += zip(gradients(ours, leaves), gradients(theirs, leaves), strict=True)
    return max(distance(a.detach(), b.detach()) for a, b in pairs)


def check_evaluation(device: str, dtype: torch.dtype) -> float:
    """The same for the exact loss; and that the best class has the largest logit."""
    h = torch.randn(19, 40, device=device).to(dtype)
    weight = torch.randn(700, 40, device=device).to(dtype)
    target = torch.randint(700, (19,), device=device)
    ours = ssc.exact.exact_cross_entropy(h, weight, target)
    z = h.double() @ weight.double().t()
    best = ssc.exact.topk(h, weight, 5)
    largest = z.topk(5, dim=1).values
    expected = torch.nn.functional.cross_entropy(z, target)
    return max(distance(ours, expected), distance(best.values, largest))


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = options.parse_args().device
    torch.manual_seed(0)
    failures = []
    both = (False, True)
    cases = list(itertools.product(TOLERANCE, SHAPES, both, both, ({},)))
    cases += itertools.product(TOLERANCE, SHAPES, (False,), (False,), OPTIONS)
    for dtype, *case in cases:
        error = check_step(device, dtype, *case)
        if not error <= TOLERANCE[dtype]:
            failures.append(f"{dtype}, shape, sparse, distinct, options {case}: {error:.2e}")
    for dtype, tolerance in TOLERANCE.items():
        error = check_evaluation(device, dtype)
        if not error <= tolerance:
            failures.append(f"evaluation in {dtype}: {error:.2e}")
    for dtype in TOLERANCE:  # steps of optimizers, and debts
        finding = self_check.examine("updates", torch.device(device), dtype)
        if finding.message:
            failures.append(f"updates in {dtype}: {finding.message}")
    if failures:
        raise SystemExit("\n".join(["wrong results:", *failures]))
    print(f"{len(cases) + 2 * len(TOLERANCE)} cases on {device}: right")


if __name__ == "__main__":
    main()

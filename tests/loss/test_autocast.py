"""Under autocast the loss is float32 and the class weights stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sampled_softmax_cuda as ssc
from helpers.problem import make_option_problem


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_step(device: str, mode: bool, sparse_grad: bool, dtype: torch.dtype) -> None:
    trunk, head = nn.Linear(8, 16), ssc.SampledSoftmaxLoss(16, 100, 30, sparse_grad=sparse_grad)
    head.train(mode)
    x, target = torch.randn(20, 8), torch.randint(100, (20,))
    torch.manual_seed(1)
    with torch.autocast(x.device.type, dtype=dtype):
        h = trunk(x)
        loss = head(h, target)
    assert h.dtype == dtype
    assert loss.dtype == torch.float32
    loss.backward()
    assert head.weight.grad.dtype == torch.float32
    assert trunk.weight.grad.dtype == torch.float32
    torch.manual_seed(1)
    expected = head(trunk(x), target)
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)


def test_weight_is_not_converted(native: None) -> None:
    """Nothing of the size of the weight is made in a step with sparse gradients."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                    largest = max(largest, tensor.numel())
            return result

    head = ssc.SampledSoftmaxLoss(16, 10_000, 30, sparse_grad=True)
    h = torch.randn(20, 16, dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(10_000, (20,))
    with Watch(), torch.autocast("cpu", dtype=torch.bfloat16):
        head(h, target).backward()
    assert 0 < largest <= 50 * 16


@pytest.mark.parametrize(
    ("input_dtype", "weight_dtype", "loss_dtype"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16, torch.float16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_dtype_of_the_loss_outside_autocast(
    either: str,
    reduction: str,
    input_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    loss_dtype: torch.dtype,
) -> None:
    h, w = torch.randn(4, 6, dtype=input_dtype), torch.randn(9, 6, dtype=weight_dtype)
    samples = ssc.Samples(torch.arange(5))
    target = torch.randint(9, (4,))
    loss = ssc.sampled_softmax_loss(h, w, target, samples, reduction=reduction)
    assert loss.dtype == loss_dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ssc.sampled_softmax_loss(h, w, target, samples, reduction=reduction)
    assert loss.dtype == (torch.float64 if input_dtype == torch.float64 else torch.float32)


def test_small_float16_gradients_survive_a_grad_scaler(either: str) -> None:
    """Gradients of the mean over many rows lie below float16's smallest number; scaled, they do
    not, so the scale has to reach them before they are rounded."""
    rows, scale = 4096, 2.0**14
    h = (1e-2 * torch.randn(rows, 4)).half().requires_grad_()
    w = (1e-2 * torch.randn(50, 4)).half()
    samples, target = ssc.Samples(torch.arange(50)), torch.randint(50, (rows,))
    (ssc.sampled_softmax_loss(h, w, target, samples).float() * scale).backward()
    double = h.detach().double().requires_grad_()
    (ssc.sampled_softmax_loss(double, w.double(), target, samples) * scale).backward()
    torch.testing.assert_close(h.grad.double(), double.grad, rtol=2e-2, atol=2e-3)
    assert bool((h.grad != 0).float().mean() > 0.95)


@pytest.mark.parametrize("classes", [50, 12])  # the first 12 are touched
@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("bias_dtype", [None, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 2.0}, {"objective": ssc.Softmax(label_smoothing=0.1)}], ids=str
)
def test_scaled_float16_gradients(
    device: str,
    options: dict[str, Any],
    bias_dtype: torch.dtype | None,
    sparse_grad: bool,
    classes: int,
) -> None:
    """All three, and again in a second backward pass, as accurate as their last rounding."""
    rows, scale = 600, 2.0**12
    h, w = ((0.1 * torch.randn(n, 4)).half() for n in (rows, classes))
    leaves = [h, w] if bias_dtype is None else [h, w, (0.1 * torch.randn(classes)).to(bias_dtype)]
    samples = ssc.Samples(torch.arange(10), torch.randn(10), None)
    target = torch.randint(12, (rows,))

    def scaled_loss(h: torch.Tensor, w: torch.Tensor, *bias: torch.Tensor, sparse: bool):
        loss = ssc.sampled_softmax_loss(
            h, w, target, samples, bias=bias[0] if bias else None, sparse_grad=sparse, **options
        )
        return loss.to(torch.promote_types(loss.dtype, torch.float32)) * scale

    for leaf in leaves:
        leaf.requires_grad_()
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = torch.autograd.grad(scaled_loss(*exact, sparse=False), exact)
    loss = scaled_loss(*leaves, sparse=sparse_grad)
    for _ in range(2):
        grads = torch.autograd.grad(loss, leaves, retain_graph=True)
        for leaf, got, want in zip(leaves, grads, truth, strict=True):
            assert got.dtype == leaf.dtype
            assert got.is_sparse == (sparse_grad and leaf is not h)
            error = ((got.to_dense() if got.is_sparse else got).double() - want).abs().max()
            assert error <= 2e-3 * want.abs().max(), (leaf.shape, error)


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}], ids=str)
def test_float16_takes_three_matmuls(native: None, options: dict[str, Any]) -> None:
    """One sweep, with the gradients, as in float32; not the loss first and the gradients later."""
    called = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if func.namespace == "sampled_softmax":
                called.append(func._opname)
            return func(*args, **(kwargs or {}))

    h, w = (torch.randn(n, 4).half().requires_grad_() for n in (6, 20))
    samples, target = ssc.Samples(torch.arange(9)), torch.randint(20, (6,))
    with Watch():
        ssc.sampled_softmax_loss(h, w, target, samples, sparse_grad=True, **options).backward()
    sweeps = [name for name in called if name.startswith(("loss_", "negatives_"))]
    assert sweeps == ["negatives_loss_and_grads" if options else "loss_and_wide_grads"]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "options",
    [
        {"objective": ssc.Softmax(label_smoothing=0.1)},
        {"objective": "nce"},
        {"cosine": True, "objective": ssc.Softmax(margin=0.2)},
        {"num_targets": 2, "softcap": 2.0},
        {"per_row": True},
    ],
    ids=str,
)
def test_float32_stays_float32(device: str, options: dict[str, Any], reduction: str) -> None:
    """Autocast lowers no product inside of a loss of any options."""
    p = make_option_problem(9, 12, 60, 20, **{"num_targets": None, **options}).to(torch.float32)
    results = []
    for enabled in (False, True):
        with torch.autocast(p.input.device.type, dtype=torch.bfloat16, enabled=enabled):
            loss = p.loss(reduction=reduction)
        results.append([loss, *torch.autograd.grad(loss.sum(), p.leaves)])
    for plain, under_autocast in zip(*results, strict=True):
        torch.testing.assert_close(under_autocast, plain, rtol=1e-6, atol=1e-7)

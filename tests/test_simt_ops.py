"""The CUDA operators (csrc/ops/*_cuda.cpp) with real tensors: the CPU's memory stands for a GPU's
and csrc/simt runs the kernels. Same arguments, same meaning as the operators of the CPU.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from sampling import KINDS, key, make_sampler
from simt_bench import module_path, require
from torch import Tensor

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda.testing import EPSILON, make_problem

B, D, C, S = 9, 20, 50, 33


@pytest.fixture(scope="module")
def ops() -> Any:
    """torch.ops.sampled_softmax_simt."""
    require("ops")
    torch.ops.load_library(str(module_path("ops")))
    return torch.ops.sampled_softmax_simt


def arguments(
    dtype: torch.dtype = torch.float32, bias: bool = True, ignore_index: int = -100
) -> list[Any]:
    """Of loss_rows, with hits, repeated samples and two rows that don't count."""
    p = make_problem(B, D, C, S, dtype=dtype, bias=bias, ignored=2, ignore_index=ignore_index)
    leaves = [None if t is None else t.detach() for t in (p.input, p.weight, p.bias)]
    return [*leaves, p.target, *p.samples, 0.7, True, ignore_index]


def assert_close(ours: Tensor, cpus: Tensor, what: str, slack: float = 16.0) -> None:
    assert ours.dtype == cpus.dtype, what
    assert ours.shape == cpus.shape, what
    epsilon = EPSILON[ours.dtype]
    scale = max(1.0, float(cpus.double().abs().max())) if cpus.numel() else 1.0
    torch.testing.assert_close(
        ours, cpus, rtol=0.0, atol=slack * epsilon * scale, msg=lambda m: f"{what}: {m}"
    )


def dense(rows: Tensor, values: Tensor, size: int) -> Tensor:
    """Sparse gradients as dense ones; adding the zeros of repeated classes changes nothing."""
    return values.new_zeros(size, *values.shape[1:]).index_add_(0, rows[0], values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_losses_per_row(native: None, ops: Any, dtype: torch.dtype, bias: bool) -> None:
    a = arguments(dtype, bias)
    names = ("loss", "lse", "target_logit", "error")
    want = torch.ops.sampled_softmax.loss_rows(*a)
    for name, ours, cpus in zip(names, ops.loss_rows(*a), want, strict=True):
        assert_close(ours, cpus, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("scale", ["mean", "sum", "given"])
def test_losses_and_gradients(
    native: None, ops: Any, dtype: torch.dtype, sparse: bool, scale: str
) -> None:
    a = arguments(dtype)
    row_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    row_scale = torch.randn(B, dtype=row_dtype) if scale == "given" else None
    rest = (row_scale, scale == "mean")
    want = torch.ops.sampled_softmax.loss_and_grads(*a, *rest, False)
    total, rows, *grads, grad_rows = ops.loss_and_grads(*a, *rest, sparse)
    assert_close(total, want[0], "total")
    assert_close(rows, want[1], "rows")
    assert grad_rows.shape == (1, S + B if sparse else 0)
    if sparse:
        grads[1:] = [dense(grad_rows, grad, C) for grad in grads[1:]]
    for name, ours, cpus in zip(("input", "weight", "bias"), grads, want[2:5], strict=True):
        assert_close(ours, cpus, f"gradient of {name}")


@pytest.mark.parametrize("sparse", [False, True])
def test_without_bias_and_counts(native: None, ops: Any, sparse: bool) -> None:
    a = arguments(bias=False)
    a[5] = a[6] = None
    want = torch.ops.sampled_softmax.loss_and_grads(*a, None, True, False)
    ours = ops.loss_and_grads(*a, None, True, sparse)
    assert ours[4].shape == (0,)
    weight = dense(ours[5], ours[3], C) if sparse else ours[3]
    assert_close(weight, want[3], "gradient of weight")


def test_an_ignored_class_gets_no_row(native: None, ops: Any) -> None:
    """ignore_index may be a class: its rows don't count, but as a sample it does."""
    a = arguments(ignore_index=3)
    want = torch.ops.sampled_softmax.loss_and_grads(*a, None, True, False)
    ours = ops.loss_and_grads(*a, None, True, True)
    assert_close(dense(ours[5], ours[3], C), want[3], "gradient of weight")


def test_no_row_counts(ops: Any) -> None:
    a = arguments()
    a[3] = torch.full((B,), -100)
    total, _, *grads, _ = ops.loss_and_grads(*a, None, True, True)
    assert total == 0
    assert not any(grad.any() for grad in grads)


def test_an_empty_batch(ops: Any) -> None:
    a = arguments()
    a[0], a[3], a[6] = a[0][:0], a[3][:0], a[6][:0]
    total, rows, grad_input, grad_weight, *_ = ops.loss_and_grads(*a, None, True, False)
    assert total == 0
    assert rows.shape == (4, 0)
    assert grad_input.shape == (0, D)
    assert not grad_weight.any()
    assert ops.loss_rows(*a)[0].shape == (0,)


def test_the_total_of_many_rows_is_exact(ops: Any) -> None:
    """More rows than the one block of the reduction has threads."""
    batch = 2500
    h = torch.zeros(batch, 1)
    target = torch.arange(batch) % 3
    target[::7] = -100
    a = [h, torch.zeros(5, 1), None, target, torch.tensor([4]), None, None, 1.0, True, -100]
    total, rows, *_ = ops.loss_and_grads(*a, None, True, False)
    counted = int((target != -100).sum())
    assert total.item() == pytest.approx(float(rows[0].double().sum()) / counted, rel=1e-6)
    total = ops.loss_and_grads(*a, None, False, False)[0]
    assert total.item() == pytest.approx(float(rows[0].double().sum()), rel=1e-6)


def test_ids_out_of_range_give_nan(ops: Any) -> None:
    a = arguments()
    a[3] = a[3].clone()
    a[3][4] = C
    loss = ops.loss_rows(*a)[0]
    assert loss.isnan().nonzero().flatten().tolist() == [4]
    ops.loss_and_grads(*a, None, True, True)
    a[4] = a[4].clone()
    a[4][0] = -1
    assert ops.loss_rows(*a)[0][2:].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_draws(native: None, ops: Any, kind: str) -> None:
    sampler = make_sampler(kind, 1000)
    target = torch.tensor([[0, 3], [999, -100]])
    name, where = {
        "uniform": ("uniform", (1000,)),
        "log_uniform": ("log_uniform", (1000,)),
        "weighted": ("alias", getattr(sampler, "table", None)),
    }[kind]
    if isinstance(sampler, ssc.WeightedSampler):
        where = (sampler.table, sampler.probability_bits)
    a_key = key(7, 3)
    tries = torch.tensor(88.5, dtype=torch.float64)
    # With replacement; the first distinct draws; a race. n as observed, or for a given t.
    ways = itertools.product([(77, 0), (77, 1), (990, 2), (0, 1)], [None, tries])
    for (n, method), given in ways:
        rest = (a_key, target, *where, n, method, given)
        want = getattr(torch.ops.sampled_softmax, f"sample_{name}")(*rest)
        ours = getattr(ops, f"sample_{name}")(*rest)
        for a, b in zip(ours, want, strict=True):
            assert torch.equal(a, b)
            assert a.dtype == b.dtype
    with pytest.raises(RuntimeError, match="must not exceed the number of classes"):
        getattr(ops, f"sample_{name}")(a_key, target, *where, 1001, 1, None)
    for given in (None, tries):
        rest = (target, *where[-1:], 64, given)
        count = f"log_count_{kind}"
        assert torch.equal(
            getattr(ops, count)(*rest), getattr(torch.ops.sampled_softmax, count)(*rest)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_exact_losses_and_logits(native: None, ops: Any, dtype: torch.dtype, bias: bool) -> None:
    h, weight, b, target, *_ = arguments(dtype, bias)
    want = torch.ops.sampled_softmax.exact_loss_rows(h, weight, b, target, 0.7, -100)
    ours = ops.exact_loss_rows(h, weight, b, target, 0.7, -100)
    for name, mine, cpus in zip(("loss", "lse"), ours, want, strict=True):
        assert_close(mine, cpus, name)
    for begin, end in [(0, C), (7, 41), (5, 5)]:
        z = torch.ops.sampled_softmax.logits(h, weight, b, begin, end, 0.7)
        assert_close(ops.logits(h, weight, b, begin, end, 0.7), z, "logits")
    with pytest.raises(RuntimeError, match=r"are not within \[0, C=50\)"):
        ops.logits(h, weight, b, 0, C + 1, 0.7)


def test_arguments_that_would_read_elsewhere_are_refused(ops: Any) -> None:
    def replaced(index: int, value: Any) -> list[Any]:
        a = arguments()
        a[index] = value
        return a

    h, weight, bias, target, ids, *_ = arguments()
    cases = [
        (replaced(0, h[0]), "must have 2 dimensions"),
        (replaced(1, weight.to(torch.bfloat16)), "of one dtype"),
        (replaced(1, weight[:, :-1].contiguous()), r"weight must be \[C, D=20\]"),
        (replaced(1, weight.T.contiguous().T), "rows must be contiguous"),
        (replaced(2, bias[1:]), r"bias must have shape \[50\]"),
        (replaced(3, target[1:]), r"target must have shape \[9\]"),
        (replaced(4, ids.to(torch.int32)), "ids must be int64"),
        (replaced(5, torch.zeros(S + 1)), r"log_expected_count must have shape \[33\]"),
    ]
    for a, message in cases:
        with pytest.raises(RuntimeError, match=message):
            ops.loss_rows(*a)
    with pytest.raises(RuntimeError, match=r"row_scale must have shape \[9\]"):
        ops.loss_and_grads(*arguments(), torch.ones(B + 1), False, False)
    with pytest.raises(RuntimeError, match="row_scale must have the row outputs' dtype"):
        ops.loss_and_grads(*arguments(), torch.ones(B, dtype=torch.float64), False, False)

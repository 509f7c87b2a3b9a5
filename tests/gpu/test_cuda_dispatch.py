"""Python's way with tensors on a GPU, on machines without one: fake tensors go in, and a record
of the operators called comes out. A fake tensor has no values, so whatever would wait for the
device to read one fails here. (Autograd's engine needs a real device; the Functions are called as
it would call them.)
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda import functional
from sampled_softmax_cuda.losses.problem import Problem
from sampled_softmax_cuda.ops import library, loss
from sampled_softmax_cuda.ops import sample as ops
from sampled_softmax_cuda.ops.precision import IEEE, TF32
from sampled_softmax_cuda.proposals import Method

B, D, C, S = 6, 8, 100, 20
OPERATORS = {"loss_rows", "loss_and_grads", "logits", "sample", "log_counts"}


class Recorder(TorchDispatchMode):
    """Our operators as they are called, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "sampled_softmax":
            self.calls.append((func._opname, args))
        return func(*args, **(kwargs or {}))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def record(native: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Inside, "cuda" has our kernels, tensors are fake, and the reference only records calls."""
    recorder = Recorder()

    def draw(*arguments: Any) -> Tensor:
        recorder.calls.append(("reference", arguments))
        return arguments[1]

    def solve(p: Problem) -> tuple[Tensor, list[Tensor]]:
        recorder.calls.append(("reference", (p,)))
        return p.input.new_empty(p.target.shape if p.reduction == "none" else ()), []

    monkeypatch.setattr(library, "_cuda_ops", frozenset(OPERATORS))
    monkeypatch.setattr(functional, "reference", solve)
    monkeypatch.setattr(ops.reference, "sample", draw)
    with FakeTensorMode(), recorder:
        yield recorder


def parameters(
    input: torch.dtype = torch.float32,
    weight: torch.dtype = torch.float32,
    bias: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = {(B, D): input, (C, D): weight, (C,): bias}
    h, w, b = (torch.empty(s, dtype=d, device="cuda") for s, d in shapes.items())
    return h, w, b


def target() -> Tensor:
    return torch.empty(B, dtype=torch.int64, device="cuda")


def samples(dtype: torch.dtype = torch.float32) -> ssc.Samples:
    return ssc.Samples(
        torch.empty(S, dtype=torch.int64, device="cuda"),
        torch.empty(S, dtype=dtype, device="cuda"),
        torch.empty(B, dtype=dtype, device="cuda"),
    )


@pytest.mark.parametrize("replacement", [True, False])
def test_a_draw(record: Recorder, replacement: bool) -> None:
    sampler = ssc.UniformSampler(C)
    if replacement:
        drawn = sampler.sample(target(), S)
        assert drawn.ids.shape == (S,)
        assert drawn.ids.is_cuda
    else:
        key = torch.empty(2, dtype=torch.int64, device="cuda")
        ops.sample(sampler._proposal(), key, target(), S, Method.DISTINCT, None)
    sampler.log_expected_count(target(), S)
    assert record.names == ["sample", "log_counts"]


def test_the_loss_without_gradients(record: Recorder) -> None:
    h, weight, bias = parameters()
    for reduction in ("mean", "sum", "none"):
        loss, details = ssc.sampled_softmax_loss(
            h, weight, target(), samples(), bias=bias, reduction=reduction, return_details=True
        )
        assert loss.shape == ((B,) if reduction == "none" else ())
        assert details.lse.is_cuda
    assert record.names == ["loss_rows"] * 3


@pytest.mark.parametrize(
    ("dtypes", "computed_in"),
    [
        (("float32", "float32", "float32"), "float32"),
        (("bfloat16", "bfloat16", "bfloat16"), "bfloat16"),
        (("bfloat16", "float32", "float32"), "float32"),  # autocast
        (("float16", "float32", "bfloat16"), "float32"),
        (("float64", "float64", "float64"), "float64"),
        (("float32", "bfloat16", "bfloat16"), None),
        (("bfloat16", "float16", "float16"), None),
        (("bfloat16", "bfloat16", "float32"), None),
    ],
)
def test_mixed_dtypes(
    record: Recorder, dtypes: tuple[str, str, str], computed_in: str | None
) -> None:
    """Nothing is rounded: what doesn't fit into the weight's dtype is the reference's."""
    h, weight, bias = parameters(*(getattr(torch, name) for name in dtypes))
    loss = ssc.sampled_softmax_loss(h, weight, target(), samples(), bias=bias, reduction="none")
    ((name, arguments),) = record.calls
    assert name == ("reference" if computed_in is None else "loss_rows")
    if computed_in is None:
        return
    promoted = torch.promote_types(torch.promote_types(h.dtype, weight.dtype), bias.dtype)
    assert loss.dtype == promoted
    assert [str(t.dtype) for t in arguments[:3]] == [f"torch.{computed_in}"] * 3
    assert arguments[1] is weight


def test_float64_counts_are_not_rounded(record: Recorder) -> None:
    for dtype in (torch.float32, torch.float64):
        h, weight, bias = parameters(dtype, dtype, dtype)
        ssc.sampled_softmax_loss(h, weight, target(), samples(torch.float64), bias=bias)
    assert record.names == ["loss_rows", "reference"]


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tf32_is_torchs_choice(
    record: Recorder, precision: None, dtype: torch.dtype, allowed: bool
) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"
    h, weight, bias = parameters(dtype, dtype, dtype)
    ssc.sampled_softmax_loss(h, weight, target(), samples(), bias=bias)
    (_, arguments) = record.calls[0]
    assert arguments[10:] == ((TF32,) if allowed and dtype == torch.float32 else ())


class Context(SimpleNamespace):
    """The context of an autograd Function: what it keeps between forward and backward."""

    needs_input_grad = (True,) * 6

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        pass

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        pass


@pytest.mark.parametrize("sparse_grad", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_a_step_of_the_total(record: Recorder, sparse_grad: bool, traced: bool) -> None:
    """Forward and backward, twice: the gradients of the first are handed out, then recomputed."""
    h, weight, bias = parameters()
    drawn = samples()
    rest = (target(), drawn.ids, drawn.log_expected_count, None, 1.0, True, -100, None, True)
    sweep = loss.Sweep(sparse_grad, traced, products=IEEE)
    ctx = Context()
    with torch.no_grad():
        total, rows = loss._TotalLoss.forward(ctx, h, weight, bias, rest, True, sweep)
        assert total.shape == ()
        assert rows.shape == (4, B)
        for _ in range(2):
            upstream = torch.empty((), device="cuda")
            grads = loss._TotalLoss.backward(ctx, upstream)[:3]
            check_gradients(grads, (h, weight, bias), sparse_grad)
    assert record.names == ["loss_and_grads"] * (1 if traced else 2)


@pytest.mark.parametrize("sparse_grad", [False, True])
def test_a_step_of_losses_per_row(record: Recorder, sparse_grad: bool) -> None:
    h, weight, bias = parameters()
    drawn = samples()
    rest = (target(), drawn.ids, None, None, 1.0, True, -100)
    sweep = loss.Sweep(sparse_grad, False, products=TF32)
    ctx = Context()
    with torch.no_grad():
        loss._RowsLoss.forward(ctx, h, weight, bias, rest, sweep)
        grads = loss._RowsLoss.backward(ctx, torch.empty(B, device="cuda"))[:3]
    check_gradients(grads, (h, weight, bias), sparse_grad)
    assert record.names == ["loss_rows", "loss_and_grads"]
    assert [arguments[-1] for _, arguments in record.calls] == [True, True]


def check_gradients(
    grads: tuple[Tensor | None, ...], parameters: tuple[Tensor, ...], sparse: bool
) -> None:
    for grad, parameter in zip(grads, parameters, strict=True):
        assert grad is not None
        assert grad.shape == parameter.shape
        assert grad.device == parameter.device
    for grad in grads[1:]:
        assert grad is not None
        assert grad.is_sparse == sparse
        if sparse:  # a class may be there several times, so optimizers have to add up
            assert not grad.is_coalesced()
            assert grad._values().shape[0] == S + B


@pytest.mark.parametrize("layout", ["ids", "one-hot"])
def test_cntks_loss(record: Recorder, layout: str) -> None:
    """Parameters and sampler on the GPU: draws, loss and logits are operators, nothing waits."""
    empty = torch.empty(C, dtype=torch.int64, device="cuda")
    sampler = ssc.WeightedSampler.__new__(ssc.WeightedSampler)
    ssc.Sampler.__init__(sampler)
    sampler.num_classes = sampler._num_drawable = C
    sampler.table = sampler.probability_bits = empty
    sampler._stamp()
    h, weight, bias = parameters()
    labels = target() if layout == "ids" else torch.empty(B, C, device="cuda")
    z, cross_entropy, error = ssc.cntk.cross_entropy_with_sampled_softmax_and_embedding(
        h, labels, C, D, S, sampler, True, weight=weight, bias=bias.unsqueeze(1)
    )
    assert z.shape == (B, C)
    assert cross_entropy.shape == error.shape == (B,)
    assert z.is_cuda and cross_entropy.is_cuda and error.is_cuda
    assert record.names == ["sample", "loss_rows", "logits"]


@pytest.fixture
def planned() -> None:
    """How to draw unique classes is found out once, on the CPU, by real numbers."""
    ssc.tf.log_uniform_candidate_sampler([[0]], 1, S, True, C)


def test_tensorflows_losses(planned: None, record: Recorder) -> None:
    """A draw of unique classes, their counts and the loss of a single label, without waiting."""
    h, weight, bias = parameters()
    labels = target().unsqueeze(1)
    loss = ssc.tf.sampled_softmax_loss(weight, bias, labels, h, S, C)
    assert loss.shape == (B,)
    counts = ["log_counts"] * 2  # should the draw have taken no more tries than samples
    assert record.names == ["sample", *counts, "loss_rows"]
    values = ssc.tf.uniform_candidate_sampler(labels, 1, S, False, C)
    assert all(value.is_cuda for value in values)
    assert record.names[4:] == ["sample"]

"""PyTorch's way with row-sparse gradients: docs/sparse_gradients.md, line by line.

Where PyTorch refuses something today, a test that fails means that it has learnt it, and that the
page can be shortened. DistributedDataParallel's and fully_shard's lines are in test_ddp.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.utils import parametrizations, prune

import sampled_softmax_cuda as ssc

C, D = 1000, 16


def make(dtype: torch.dtype = torch.float32, **options: Any) -> ssc.SampledSoftmaxLoss:
    return ssc.SampledSoftmaxLoss(D, C, 64, sparse_grad=True, dtype=dtype, **options)


def backward(head: ssc.SampledSoftmaxLoss) -> ssc.SampledSoftmaxLoss:
    head(torch.randn(8, D, dtype=head.weight.dtype), torch.randint(C, (8,))).backward()
    return head


def rows_moved(kind: Callable[..., optim.Optimizer], steps: int, **options: Any) -> tuple[int, int]:
    """The rows that the last of some steps touches, and those that it moves."""
    head = make()
    optimizer = kind(head.parameters(), lr=0.1, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        before = backward(head).weight.detach().clone()
        optimizer.step()
    touched = head.weight.grad.coalesce().indices().shape[1]
    return touched, int((head.weight != before).any(dim=1).sum())


# --- optimizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (optim.SGD, {}),
        (optim.SGD, {"foreach": True}),
        (optim.SGD, {"maximize": True}),
        (optim.Adagrad, {}),
        (optim.Adagrad, {"foreach": True}),
        (optim.SparseAdam, {}),
    ],
    ids=str,
)
def test_optimizers_that_move_the_rows_touched(kind: Any, options: dict[str, Any]) -> None:
    touched, moved = rows_moved(kind, 10, **options)
    assert moved == touched < 100


@pytest.mark.parametrize("options", [{}, {"nesterov": True}], ids=str)
def test_momentum_moves_every_row_ever_touched(options: dict[str, Any]) -> None:
    touched, moved = rows_moved(optim.SGD, 1, momentum=0.9, **options)
    assert moved == touched
    touched, moved = rows_moved(optim.SGD, 40, momentum=0.9, **options)
    assert moved > 8 * touched


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (optim.SGD, {"weight_decay": 0.1}, "add\\(sparse, dense\\) is not supported"),
        (optim.Adagrad, {"weight_decay": 0.1}, "weight_decay option is not compatible with sparse"),
        (optim.SGD, {"fused": True}, "does not support sparse gradients"),
        (optim.Adagrad, {"fused": True}, "does not support sparse grad"),
        *(
            (kind, {}, "does not support sparse gradients")
            for kind in (
                optim.Adam,
                optim.AdamW,
                optim.NAdam,
                optim.RAdam,
                optim.Adamax,
                optim.Adadelta,
                optim.Adafactor,
                optim.RMSprop,
                optim.Rprop,
                optim.ASGD,
            )
        ),
    ],
    ids=str,
)
def test_optimizers_that_refuse(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        rows_moved(kind, 1, **options)


def test_sparse_adam_refuses_the_exact_loss() -> None:
    head = backward(make().eval())
    with pytest.raises(RuntimeError, match="does not support dense gradients"):
        optim.SparseAdam(head.parameters()).step()


# --- what is done to gradients --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apply", "operator"),
    [
        (lambda p: nn.utils.clip_grad_norm_(p, 1.0), "aten::linalg_vector_norm"),
        (lambda p: nn.utils.get_total_norm([q.grad for q in p]), "aten::linalg_vector_norm"),
        (lambda p: nn.utils.clip_grad_value_(p, 1.0), "aten::clamp_min_"),
        (lambda p: nn.utils.parameters_to_vector([q.grad for q in p]), "aten::view"),
    ],
    ids=["clip_grad_norm_", "get_total_norm", "clip_grad_value_", "parameters_to_vector"],
)
def test_functions_of_gradients_that_refuse(apply: Callable[..., Any], operator: str) -> None:
    parameters = list(backward(make()).parameters())
    with pytest.raises(NotImplementedError, match=operator):
        apply(parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_several_backward_passes(dtype: torch.dtype) -> None:
    head = backward(make(dtype))
    first = head.weight.grad.to_dense()
    head.weight.grad = None
    torch.manual_seed(1)
    second = backward(head).weight.grad.to_dense()
    head.weight.grad = first.to_sparse(1)
    torch.manual_seed(1)
    total = backward(head).weight.grad
    assert total.is_sparse
    assert torch.equal(total.to_dense(), first + second)


def test_several_backward_passes_in_float16() -> None:
    head = backward(make(torch.float16))
    with pytest.raises(NotImplementedError, match="cadd_sparse"):
        backward(head)
    head = make()
    for _ in range(2):
        head(torch.randn(8, D, dtype=torch.float16), torch.randint(C, (8,))).backward()
    assert head.weight.grad.is_sparse


def test_grad_scaler() -> None:
    head = make()
    optimizer, scaler = optim.SGD(head.parameters(), 0.1), torch.amp.GradScaler("cpu")
    h, target = torch.randn(8, D), torch.randint(C, (8,))
    torch.manual_seed(1)
    scaler.scale(head(h, target)).backward()
    scaler.unscale_(optimizer)
    scaled = head.weight.grad.to_dense()
    head.zero_grad()
    torch.manual_seed(1)
    head(h, target).backward()
    torch.testing.assert_close(scaled, head.weight.grad.to_dense())
    halves = make(torch.float16)
    optimizer = optim.SGD(halves.parameters(), 0.1)
    scaler.scale(halves(h.half(), target)).backward()
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaler.unscale_(optimizer)


def test_an_average_of_models() -> None:
    head = make()
    average = optim.swa_utils.AveragedModel(head)
    average.update_parameters(backward(head))
    assert torch.equal(average.module.weight, head.weight)


# --- weights --------------------------------------------------------------------------------------


def with_old_weight_norm(head: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(head, "weight")


@pytest.mark.parametrize(
    "change",
    [
        lambda head: parametrizations.weight_norm(head, "weight"),
        lambda head: parametrizations.spectral_norm(head, "weight"),
        lambda head: prune.l1_unstructured(head, "weight", 0.1),
        with_old_weight_norm,
    ],
    ids=["weight_norm", "spectral_norm", "pruning", "old weight_norm"],
)
def test_weights_that_are_computed_are_refused(device: str, change: Callable[..., Any]) -> None:
    head = change(make())
    message = "sparse_grad=True needs weight to be a parameter.*use sparse_grad=False"
    with pytest.raises(ValueError, match=message):
        backward(head)
    head.sparse_grad = False
    backward(head)
    head.sparse_grad = True
    head.eval()(torch.randn(2, D), torch.tensor([1, 2])).backward()  # its gradient is dense


def test_a_bias_that_is_computed_is_refused(device: str) -> None:
    head = prune.l1_unstructured(make(), "bias", 0.1)
    with pytest.raises(ValueError, match="sparse_grad=True needs bias to be a parameter"):
        backward(head)


@pytest.mark.parametrize(
    "view", [lambda table: table[:500], lambda table: table.T], ids=["rows", "transposed"]
)
def test_views_take_no_sparse_gradient_in_torch(view: Callable[[Tensor], Tensor]) -> None:
    """PyTorch's own, which nn.Embedding meets too."""
    weight = view(torch.randn(C, C, requires_grad=True))
    rows = nn.functional.embedding(torch.arange(9), weight, sparse=True)
    with pytest.raises(RuntimeError, match=r"SparseCPU|sparse_coo"):
        rows.sum().backward()


@pytest.mark.parametrize(
    ("layer", "sparse"),
    [
        (nn.Linear(D, C, bias=False), False),
        (nn.Embedding(C, D), False),
        (nn.Embedding(C, D, sparse=True), True),
    ],
    ids=["Linear", "Embedding", "sparse Embedding"],
)
def test_shared_weights(layer: nn.Module, sparse: bool) -> None:
    head = make(bias=False)
    head.weight = layer.weight
    target = torch.randint(C, (8,))
    given = torch.randn(8, D) if isinstance(layer, nn.Linear) else target
    for _ in range(2):
        (head(torch.randn(8, D), target) + layer(given).sum()).backward()
    assert head.weight.grad.is_sparse == sparse

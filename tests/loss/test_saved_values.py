"""Values that a backward pass needs are in autograd's sight: a change in between is an error, or
without effect; and a weight that can't have a row-sparse gradient is refused beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import sampled_softmax_cuda as ssc
from helpers.problem import make_option_problem
from helpers.samplers import parts
from sampled_softmax_cuda import exact

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"num_targets": None},
    "none": {"num_targets": None, "reduction": "none"},
    "several targets": {"num_targets": 3},
    "nce": {"num_targets": None, "objective": "nce", "num_excluded": 2},
    "nce, none": {"num_targets": None, "objective": "nce", "reduction": "none"},
    "softcap": {"num_targets": 1, "softcap": 2.0},
    "cosine": {"num_targets": None, "cosine": True},
    "label smoothing": {"num_targets": None, "objective": ssc.Softmax(label_smoothing=0.1)},
    "per row": {"num_targets": None, "per_row": True},
}


def change(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(tensor.flip(0) if tensor.dtype == torch.int64 else tensor + 1)


def check_after_a_change(loss: Tensor, leaves: list[Tensor], changed: Tensor) -> None:
    """The second backward pass gives the first one's gradients, or refuses."""
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    change(changed)
    try:
        second = torch.autograd.grad(loss, leaves)
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            return
        raise
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.to_dense(), b.to_dense())


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("options", OPTIONS)
def test_changes_between_two_backward_passes(device: str, options: str, sparse_grad: bool) -> None:
    count = 9
    for place in range(count):
        p = make_option_problem(6, 4, 11, 8, **OPTIONS[options])
        row_weight = torch.rand(6)
        loss = p.loss(sparse_grad=sparse_grad, sample_weight=row_weight)
        given = (*p.leaves, p.target, *parts(p.samples), row_weight, p.options.get("exclude"))
        assert len(given) == count
        if given[place] is not None:
            check_after_a_change(loss.sin().sum(), p.leaves, given[place])


def test_a_change_of_samples_is_seen(device: str) -> None:
    """Not only harmless by chance: where the ids are needed again, there is an error."""
    p = make_option_problem(6, 4, 11, 8, None, objective="nce")
    loss = p.loss()
    torch.autograd.grad(loss, p.leaves, retain_graph=True)
    change(p.samples.ids)
    if device != "reference":  # which keeps copies
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, p.leaves)


def test_negatives_from_a_key(device: str) -> None:
    for place in range(2):
        p = make_option_problem(6, 4, 11, 8, None, padding=False)
        keyed = ssc.UniformSampler(11).sample_keyed(p.target, 5)
        loss = ssc.sampled_softmax_loss(p.input, p.weight, p.target, keyed, bias=p.bias)
        check_after_a_change(loss, p.leaves, (keyed.key, p.weight)[place])


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"cosine": True}], ids=str)
def test_exact(device: str, options: dict[str, Any]) -> None:
    for place in range(4):
        p = make_option_problem(6, 4, 11, 8, None)
        loss = exact.exact_cross_entropy(p.input, p.weight, p.target, bias=p.bias, **options)
        check_after_a_change(loss, p.leaves, (*p.leaves, p.target)[place])
        z = exact.logits(p.input, p.weight, bias=p.bias, **options).sin().sum()
        check_after_a_change(z, p.leaves, (*p.leaves, p.target)[place])


# --- weights that are no parameters -------------------------------------------------------------


class _Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


def stored(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def normed() -> tuple[Tensor, Tensor]:
    layer = parametrizations.weight_norm(nn.Linear(4, 11, bias=False))
    return layer.parametrizations.weight.original1, layer.weight  # type: ignore[union-attr, return-value, index]


REFUSED: dict[str, Callable[[], Tensor]] = {
    "Slice": lambda: stored(12, 4)[1:],
    "Permute": lambda: stored(4, 11).T,
    "Embedding": lambda: F.embedding(torch.arange(11), stored(12, 4)),
    "Cat": lambda: torch.cat((stored(5, 4), stored(6, 4))),
    "WeightNormInterface": lambda: normed()[1],
    "Mm": lambda: stored(11, 2) @ stored(2, 4),
    "ToCopy": lambda: stored(11, 4).double().float(),
    "Div": lambda: F.normalize(stored(11, 4)),
    "View": lambda: 2 * stored(44).view(11, 4),
}
TAKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "parameter": lambda w: w,
    "scaled": lambda w: 2 * w / 3,
    "shifted": lambda w: 1 - (w + torch.ones(11, 4)),
    "clone": lambda w: w.clone(),
    "rows scaled": lambda w: w * torch.arange(11.0)[:, None],
    "alias": lambda w: w[...],
    "Function": lambda w: _Same.apply(w),  # type: ignore[no-untyped-call, no-any-return]
}


def sparse_loss(weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    samples = ssc.Samples(torch.arange(5))
    h, target = torch.ones(3, 4, dtype=weight.dtype), torch.tensor([1, 7, 10])
    loss: Tensor = ssc.sampled_softmax_loss(
        h, weight, target, samples, bias=bias, sparse_grad=True, **options
    )
    return loss


@pytest.mark.parametrize("options", [{}, {"objective": "nce"}, {"cosine": True}], ids=str)
@pytest.mark.parametrize("kind", REFUSED)
def test_weights_that_take_no_sparse_gradient(
    device: str, kind: str, options: dict[str, Any]
) -> None:
    weight = REFUSED[kind]()
    message = rf"sparse_grad=True needs the parameter itself as weight, .* {kind},"
    with pytest.raises(ValueError, match=message):
        sparse_loss(weight, **options)
    with torch.no_grad():
        assert sparse_loss(weight, **options).isfinite()
    assert sparse_loss(weight.detach(), **options).isfinite()
    assert sparse_loss(weight.detach().requires_grad_(), **options).isfinite()


def test_a_bias_that_takes_no_sparse_gradient(device: str) -> None:
    with pytest.raises(ValueError, match=r"the parameter itself as bias, .* Slice"):
        sparse_loss(stored(11, 4), stored(12)[1:])


@pytest.mark.parametrize("options", [{}, {"objective": "nce"}, {"cosine": True}], ids=str)
@pytest.mark.parametrize("kind", TAKEN)
def test_weights_that_take_one(device: str, kind: str, options: dict[str, Any]) -> None:
    weight = stored(11, 4)
    sparse_loss(TAKEN[kind](weight), **options).backward()
    sparse, weight.grad = weight.grad, None
    samples = ssc.Samples(torch.arange(5))
    h, target = torch.ones(3, 4), torch.tensor([1, 7, 10])
    ssc.sampled_softmax_loss(h, TAKEN[kind](weight), target, samples, **options).backward()
    assert sparse.is_sparse
    torch.testing.assert_close(sparse.to_dense(), weight.grad)


def test_shards_of_tensorflow() -> None:
    weights = [stored(5, 4), stored(6, 4)]
    arguments = (torch.zeros(11), torch.tensor([[1]]), torch.ones(1, 4), 3, 11)
    with pytest.raises(ValueError, match=r"^sampled_softmax_loss: .* as weights, .* Cat,"):
        ssc.tf.sampled_softmax_loss(weights, *arguments, sparse_grad=True)
    ssc.tf.sampled_softmax_loss(weights, *arguments).sum().backward()

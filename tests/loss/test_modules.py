"""SampledSoftmaxLoss: sampled in training, exact in eval mode, and what it says about itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sampled_softmax_cuda as ssc

C, D = 200, 12


def make(**options: Any) -> ssc.SampledSoftmaxLoss:
    return ssc.SampledSoftmaxLoss(D, C, 40, **options)


def batch(*leading: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*leading, D, requires_grad=True), torch.randint(C, leading)


@pytest.mark.parametrize(
    "sampler",
    [
        lambda: "uniform",
        lambda: "log_uniform",
        lambda: ssc.UniformSampler(C),
        lambda: torch.linspace(0.5, 2, C),
        lambda: ssc.WeightedSampler(torch.ones(C), power=0.75),
    ],
    ids=["uniform", "log_uniform", "Sampler", "weights", "weighted"],
)
@pytest.mark.parametrize("replacement", [True, False])
def test_training_is_the_function_on_fresh_samples(
    device: str, sampler: Any, replacement: bool
) -> None:
    options = {
        "temperature": 0.5,
        "correction": "negatives",
        "remove_accidental_hits": False,
        "reduction": "none",
        "ignore_index": 3,
    }
    module = make(sampler=sampler(), replacement=replacement, **options)
    h, target = batch(5, 3)
    target[0, 0] = 3
    torch.manual_seed(1)
    loss = module(h, target)
    torch.manual_seed(1)
    samples = module.sampler.sample(target, 40, replacement=replacement)
    expected = ssc.sampled_softmax_loss(
        h, module.weight, target, samples, bias=module.bias, **options
    )
    assert torch.equal(loss, expected)
    assert loss[0, 0] == 0
    assert not torch.equal(module(h, target), loss)


def test_ignored_targets_need_no_class(device: str) -> None:
    for sampler in ("uniform", "log_uniform", torch.ones(C)):
        module = make(sampler=sampler, reduction="none")
        h, target = batch(6)
        target[::2] = -100
        loss = module(h, target)
        assert bool((loss[::2] == 0).all())
        assert bool((loss[1::2] > 0).all())


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
def test_eval_is_the_exact_cross_entropy(device: str, bias: bool, reduction: str) -> None:
    module = make(bias=bias, reduction=reduction, temperature=0.8).eval()
    h, target = batch(4, 5)
    target[1, 2] = -100
    loss = module(h, target)
    z = F.linear(h, module.weight, module.bias) / 0.8
    expected = F.cross_entropy(z.flatten(0, 1), target.flatten(), reduction=reduction)
    torch.testing.assert_close(loss, expected.reshape(loss.shape), rtol=1e-5, atol=1e-5)
    leaves = [h, *module.parameters()]
    grads = torch.autograd.grad(loss.sum(), leaves)
    for a, b in zip(grads, torch.autograd.grad(expected.sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_logits_log_prob_topk(device: str) -> None:
    module = make(temperature=2.0)
    h, target = batch(4, 5)
    z = F.linear(h, module.weight, module.bias) / 2.0
    torch.testing.assert_close(module.logits(h), z)
    log_p = z.log_softmax(-1)
    torch.testing.assert_close(
        module.log_prob(h, target), log_p.gather(-1, target[..., None])[..., 0]
    )
    ids = torch.randint(C, (4, 5, 3))
    torch.testing.assert_close(module.log_prob(h, ids), log_p.gather(-1, ids))
    best = module.topk(h, 7)
    assert torch.equal(best.indices, z.topk(7).indices)


def test_a_linear_layer_and_back() -> None:
    """Names, shapes and initialisation are nn.Linear's."""
    linear, module = nn.Linear(D, C), make()
    names = {name: p.shape for name, p in module.named_parameters()}
    assert names == {name: p.shape for name, p in linear.named_parameters()}
    linear.load_state_dict(module.state_dict())
    h, _ = batch(3)
    torch.testing.assert_close(linear(h), module.logits(h))
    for p in module.parameters():
        assert 0.9 * D**-0.5 < float(p.detach().abs().max()) <= D**-0.5
    before = module.weight.detach().clone()
    module.reset_parameters()
    assert not torch.equal(module.weight, before)


def test_without_bias() -> None:
    module = make(bias=False)
    assert module.bias is None
    assert "bias" not in module.state_dict()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
def test_dtypes(device: str, dtype: torch.dtype) -> None:
    module = make(dtype=dtype, sampler=torch.rand(C) + 0.1)
    h, target = batch(6)
    for mode in (True, False):
        loss = module.train(mode)(h.to(dtype), target)
        assert loss.dtype == dtype
        loss.backward()
        assert module.weight.grad.dtype == dtype
    assert module.to(torch.float32)(h, target).dtype == torch.float32


def test_sampler_survives_a_change_of_dtype() -> None:
    """A sampler's table and probabilities are no weights: half precision must not round them."""
    weights = torch.rand(C) + 0.1
    module = make(sampler=weights)
    before = module.sampler.log_prob(torch.arange(C))
    assert torch.equal(module.half().sampler.log_prob(torch.arange(C)), before)


def test_device_argument() -> None:
    module = make(device="meta", sampler="uniform")
    assert module.weight.is_meta
    assert module.bias.is_meta


def test_state_dict_and_copies(device: str) -> None:
    module = make(sampler=torch.rand(C))
    other = make(sampler=torch.rand(C))
    other.load_state_dict(module.state_dict())
    h, target = batch(6)
    losses = []
    for m in (module, other, copy.deepcopy(module)):
        torch.manual_seed(1)
        losses.append(m(h, target))
    assert losses[0] == losses[1] == losses[2]


def test_repr_says_what_differs_from_the_defaults() -> None:
    text = repr(make())
    assert "in_features=12, num_classes=200, num_samples=40, bias=True" in text
    assert "temperature" not in text
    assert "LogUniformSampler" in text
    text = repr(make(replacement=False, temperature=0.5, correction="none", sparse_grad=True))
    for part in ("replacement=False", "temperature=0.5", "correction='none'", "sparse_grad=True"):
        assert part in text


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
def test_it_learns(device: str, sparse_grad: bool) -> None:
    """Ten classes' worth of structure in 200: the exact loss falls well below the unigram's."""
    centres = torch.randn(C, D)
    module = make(sparse_grad=sparse_grad, sampler="uniform")
    kind = torch.optim.SparseAdam if sparse_grad else torch.optim.Adam
    optimizer = kind(module.parameters(), lr=0.05)
    target = torch.randint(C, (256,))
    h = 3 * centres[target]
    start = float(module.eval()(h, target).detach())
    module.train()
    for _ in range(60):
        optimizer.zero_grad()
        module(h, target).backward()
        optimizer.step()
    assert float(module.eval()(h, target).detach()) < 0.3 * start


@pytest.mark.parametrize(
    "options", [{"softcap": 2.0}, {"cosine": True, "temperature": 0.1}], ids=str
)
def test_exact_loss_of_capped_logits_and_cosines(device: str, options: dict[str, Any]) -> None:
    """Everything that eval mode gives, from logits over all classes."""
    module = make(dtype=torch.float64, objective="softmax", **options).eval()
    h, target = torch.randn(6, D, dtype=torch.float64, requires_grad=True), torch.randint(C, (6,))
    w = module.weight
    if "cosine" in options:
        z = F.linear(F.normalize(h, dim=-1), F.normalize(w, dim=-1), module.bias) / 0.1
    else:
        z = 2 * torch.tanh(F.linear(h, w, module.bias) / 2)
    torch.testing.assert_close(module.logits(h), z)
    torch.testing.assert_close(
        module.log_prob(h, target[:, None]), z.log_softmax(1).gather(1, target[:, None])
    )
    best = module.topk(h, 3)
    torch.testing.assert_close(best.values, z.topk(3).values)
    assert torch.equal(best.indices, z.topk(3).indices)
    expected = F.cross_entropy(z, target)
    loss = module(h, target)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, (h, *module.parameters()))
    for a, b in zip(ours, torch.autograd.grad(expected, (h, *module.parameters())), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("replacement", [True, False])
def test_rows_with_negatives_of_their_own(device: str, replacement: bool) -> None:
    """The function on the sampler's own draws, with several targets and seen classes."""
    module = make(per_row=True, replacement=replacement, objective="nce", sparse_grad=True)
    h, target = torch.randn(3, 2, D, requires_grad=True), torch.randint(C, (3, 2, 4))
    exclude = torch.randint(-1, C, (3, 2, 5))
    torch.manual_seed(1)
    loss = module(h, target, exclude)
    torch.manual_seed(1)
    samples = module.sampler.sample(
        target, 40, per_row=True, replacement=replacement, exclude=exclude, num_true=4
    )
    assert samples.ids.shape == (3, 2, 40)
    assert not (samples.ids[..., None] == exclude[:, :, None]).any()
    expected = ssc.sampled_softmax_loss(
        h, module.weight, target, samples, bias=module.bias, objective="nce"
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    (grad,) = torch.autograd.grad(expected, module.weight)
    torch.testing.assert_close(module.weight.grad.to_dense(), grad)


def test_shared_negatives_leave_seen_classes_out(device: str) -> None:
    module = make(sampler="uniform", reduction="none")
    h, target = batch(5)
    everything = torch.arange(C).expand(5, C)
    assert torch.equal(module(h, target, everything), torch.zeros(5))

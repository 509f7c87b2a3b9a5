"""padding_idx: a class that is no class, for the losses, the exact functions and the samplers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda.samplers import Sampler

B, D, C, S, PAD = 12, 8, 30, 40, 4

SAMPLERS: dict[str, Any] = {
    "uniform": lambda: ssc.UniformSampler(C, padding_idx=PAD),
    "log-uniform": lambda: ssc.LogUniformSampler(C, padding_idx=PAD),
    "ordered": lambda: ssc.LogUniformSampler(C, order=torch.randperm(C), padding_idx=PAD),
    "weighted": lambda: ssc.WeightedSampler(torch.ones(C), smoothing=1.0, padding_idx=PAD),
    "counts": lambda: ssc.WeightedSampler.from_targets(targets(), C, padding_idx=PAD),
    "streaming": lambda: ssc.StreamingSampler(C, padding_idx=PAD, update_on_sample=True),
    "in-batch": lambda: ssc.InBatchSampler(num_classes=C, padding_idx=PAD),
    "queue": lambda: ssc.QueueSampler(20, num_classes=C, padding_idx=PAD),
    "mixed": lambda: ssc.MixedSampler(
        [ssc.UniformSampler(C, padding_idx=PAD), ssc.InBatchSampler(padding_idx=PAD)],
    ),
}
DISTRIBUTIONS = ["uniform", "log-uniform", "ordered", "weighted", "counts", "streaming"]


def targets() -> torch.Tensor:
    target = torch.arange(B)
    target[1::3] = PAD
    return target


def leaves() -> list[torch.Tensor]:
    shapes = ((B, D), (C, D), (C,))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def without_padding(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The exact loss of the rows that count, over the other classes."""
    kept = [k for k in range(C) if k != PAD]
    rows = targets() != PAD
    names = torch.tensor([kept.index(int(t)) for t in targets()[rows]])
    return F.cross_entropy((h @ w.T + b)[rows][:, kept], names)


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_is_never_drawn(either: str, name: str) -> None:
    sampler: Sampler = SAMPLERS[name]()
    for replacement in (True, False):
        for _ in range(3):
            samples = sampler.sample(targets(), 25, replacement=replacement)
            drawn = samples.ids[samples.log_expected_count < torch.inf]
            assert drawn.numel() > 0
            assert not (drawn == PAD).any()
    if name in DISTRIBUTIONS:
        q = sampler.log_prob(torch.arange(C)).exp()
        assert q[PAD] == 0
        assert float(q.sum()) == pytest.approx(1.0, abs=1e-5)
        assert sampler.num_drawable == C - 1
        keyed = sampler.sample_keyed(targets(), 20).materialize()
        assert not (keyed.ids == PAD).any()


def test_ranks_close_up(either: str) -> None:
    q = ssc.LogUniformSampler(C, padding_idx=PAD).log_prob(torch.arange(C))
    others = ssc.LogUniformSampler(C - 1).log_prob(torch.arange(C - 1))
    torch.testing.assert_close(torch.cat((q[:PAD], q[PAD + 1 :])), others)


@pytest.mark.parametrize("kind", ["shared", "per row", "keyed"])
@pytest.mark.parametrize("objective", ["softmax", "nce", ssc.Softmax(margin=0.2)], ids=str)
def test_as_if_the_class_were_not_there(
    device: str, kind: str, objective: str | ssc.Objective
) -> None:
    """With samples of a sampler that knows nothing of it."""
    h, w, b = (x.detach().float().to(torch.get_default_device()) for x in leaves())
    target = targets().to(h.device)
    sampler = ssc.UniformSampler(C)
    samples: Any = (
        sampler.sample_keyed(target, S)
        if kind == "keyed"
        else sampler.sample(target, S, per_row=kind == "per row")
    )
    parameters = [x.requires_grad_() for x in (h, w, b)]
    options: dict[str, Any] = {"bias": b, "objective": objective}
    got = ssc.sampled_softmax_loss(h, w, target, samples, padding_idx=PAD - C, **options)
    given = samples.materialize()
    masked = ssc.mask_samples(given, torch.full((B, 1), PAD, device=h.device))
    ignored = target.masked_fill(target == PAD, -100)
    want = ssc.reference.sampled_softmax_loss(h, w, ignored, masked, **options)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(got, parameters)
    for ours, theirs in zip(grads, torch.autograd.grad(want, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not grads[1][PAD].any()
    assert not grads[2][PAD].any()


@pytest.mark.parametrize(
    "options", [{}, {"softcap": 3.0}, {"cosine": True}, {"z_loss": 0.01}], ids=str
)
def test_exact(device: str, options: dict[str, Any]) -> None:
    h, w, b = (x.detach().float().to(torch.get_default_device()).requires_grad_() for x in leaves())
    target = targets().to(h.device)
    got = ssc.exact_cross_entropy(h, w, target, bias=b, padding_idx=PAD, **options)
    logit_options = {k: v for k, v in options.items() if k != "z_loss"}
    z = ssc.logits(h, w, bias=b, padding_idx=PAD, **logit_options)
    assert (z[:, PAD] == -torch.inf).all()
    ignored = target.masked_fill(target == PAD, -100)
    lse = z.logsumexp(1)[ignored != -100]
    want = F.cross_entropy(z, ignored) + options.get("z_loss", 0.0) * lse.square().mean()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(got, (h, w, b), allow_unused=True),
        torch.autograd.grad(want, (h, w, b), allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_exact_equals_the_softmax_of_the_others(either: str) -> None:
    h, w, b = leaves()
    got = ssc.exact_cross_entropy(h, w, targets(), bias=b, padding_idx=PAD)
    torch.testing.assert_close(got, without_padding(h, w, b))


def test_every_class_once_is_exact(either: str) -> None:
    h, w, b = leaves()
    every = ssc.Samples(torch.arange(C))
    got = ssc.sampled_softmax_loss(h, w, targets(), every, bias=b, padding_idx=PAD)
    torch.testing.assert_close(got, without_padding(h, w, b))


def test_it_is_not_ranked(device: str) -> None:
    h, w = torch.randn(B, D), torch.randn(C, D)
    w[PAD] = 100 * h[0]
    assert ssc.topk(h, w, 1).indices[0] == PAD
    for softcap in (None, 5.0):
        best = ssc.topk(h, w, C - 1, padding_idx=PAD, softcap=softcap)
        assert not (best.indices == PAD).any()
        assert best.values.isfinite().all()
    with pytest.raises(ValueError, match=r"topk: k must be at most C=30 - 1, the padding left out"):
        ssc.topk(h, w, C, padding_idx=PAD)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_log_prob(device: str, softcap: float | None) -> None:
    h, w = torch.randn(B, D), torch.randn(C, D)
    ids = torch.arange(C).expand(B, C).contiguous()
    want = ssc.logits(h, w, padding_idx=PAD, softcap=softcap).log_softmax(1)
    options: dict[str, Any] = {"padding_idx": PAD, "softcap": softcap}
    torch.testing.assert_close(ssc.log_prob(h, w, ids, **options), want, rtol=1e-4, atol=1e-5)
    first_is_padding = ids.roll(-PAD, 1).contiguous()
    torch.testing.assert_close(
        ssc.log_prob(h, w, first_is_padding, **options), want.roll(-PAD, 1), rtol=1e-4, atol=1e-5
    )
    assert (ssc.log_prob(h, w, torch.full((B,), PAD), **options) == -torch.inf).all()


@pytest.mark.parametrize("sampler", ["uniform", "log_uniform", torch.ones(C)], ids=str)
@pytest.mark.parametrize("per_row", [False, True])
def test_module(either: str, sampler: Any, per_row: bool) -> None:
    head = ssc.SampledSoftmaxLoss(D, C, S, sampler, padding_idx=PAD, per_row=per_row)
    assert not head.weight[PAD].any()
    h = torch.randn(B, D)
    before = [p.detach().clone() for p in head.parameters()]
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    head(h, targets()).backward()
    optimizer.step()
    for parameter, old in zip(head.parameters(), before, strict=True):
        assert torch.equal(parameter[PAD], old[PAD])
        assert not torch.equal(parameter, old)
    head.eval()
    exact = head(h, targets())
    bias = head.bias
    assert bias is not None
    double = (h.double(), head.weight.double(), bias.double())
    torch.testing.assert_close(exact.double(), without_padding(*double), rtol=1e-5, atol=1e-5)
    assert (head.logits(h)[:, PAD] == -torch.inf).all()
    assert "padding_idx=4" in repr(head)


def test_all_rows_padding(device: str) -> None:
    h, w = torch.randn(3, D, requires_grad=True), torch.randn(C, D, requires_grad=True)
    target = torch.full((3,), PAD)
    samples = ssc.UniformSampler(C).sample(target, S)
    for loss in (
        ssc.sampled_softmax_loss(h, w, target, samples, padding_idx=PAD),
        ssc.exact_cross_entropy(h, w, target, padding_idx=PAD),
    ):
        assert loss == 0
        assert not any(g.any() for g in torch.autograd.grad(loss, (h, w)))


def test_one_class_only() -> None:
    with pytest.raises(ValueError, match=r"padding_idx=0 leaves no class of C=1"):
        ssc.logits(torch.ones(1, 2), torch.ones(1, 2), padding_idx=0)
    with pytest.raises(ValueError, match=r"padding_idx=0 leaves no class of C=1"):
        ssc.UniformSampler(1, padding_idx=0)

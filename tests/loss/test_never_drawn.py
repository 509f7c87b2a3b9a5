"""Classes that the proposal never draws, q = 0: as targets, and as samples of one's own making.

One rule for all: their logits are not corrected, as if n were 1. So losses and gradients are
finite, in every loss, sampler and drop-in.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.options import OPTIONS, SINGLE, check_options
from helpers.problem import Problem, make_option_problem
from helpers.samplers import parts
from helpers.truth import option_truth

C = 40
NEVER = [0, 7, 8]
ALL = {**OPTIONS, **SINGLE}
SOME = [
    "softmax",
    "negatives",
    "none",
    "hits kept",
    "softcap",
    "nce",
    "nce softcap",
    "cosine",
    "label smoothing",
    "smoothing, hits kept",
    "gbce",
    "reweighted",
]


def with_zeros(p: Problem) -> Problem:
    """Some classes of samples and targets have n = 0."""
    ids, log_count, target_log_count = parts(p.samples)
    assert log_count is not None
    assert target_log_count is not None
    log_count = log_count.masked_fill(ids % 5 == 2, -torch.inf)
    log_count.flatten()[1] = -torch.inf  # of a class that other samples may be too
    target_log_count = target_log_count.masked_fill(p.target % 2 == 1, -torch.inf)
    assert (target_log_count == -torch.inf).any()
    p.samples = ssc.Samples(ids, log_count, target_log_count)
    return p


@pytest.mark.parametrize("num_targets", [None, 3], ids=["[*]", "[*, T]"])
@pytest.mark.parametrize("options", SOME)
def test_counts_of_zero_correct_nothing(
    backend: str, options: str, num_targets: int | None
) -> None:
    if options in SINGLE and num_targets is not None:
        pytest.skip("one target")
    p = make_option_problem(9, 19, C, 37, num_targets, even=False, **ALL[options])
    check_options(with_zeros(p), torch.float64)
    check_options(with_zeros(p), torch.float32, sparse_grad=True)


@pytest.mark.parametrize(
    "options", ["softmax", "hits kept", "nce", "nce softcap", "gbce", "reweighted"]
)
def test_counts_of_zero_of_rows_with_samples_of_their_own(backend: str, options: str) -> None:
    p = make_option_problem(9, 19, C, 21, None, per_row=True, even=False, **ALL[options])
    check_options(with_zeros(p), torch.float64)
    check_options(with_zeros(p), torch.float32, sparse_grad=True)


def weights() -> Tensor:
    w = torch.arange(1.0, C + 1)
    w[NEVER] = 0
    return w


def mixed() -> ssc.Sampler:
    other = torch.ones(C)
    other[NEVER] = 0
    return ssc.MixedSampler([ssc.WeightedSampler(weights()), ssc.WeightedSampler(other)])


SAMPLERS = {
    "weighted": lambda: ssc.WeightedSampler(weights()),
    "mixed": mixed,
    "in-batch": lambda: ssc.InBatchSampler(ssc.WeightedSampler(weights())),
    "queue": lambda: ssc.QueueSampler(8, ssc.WeightedSampler(weights())),
}
DRAWS: dict[str, dict[str, Any]] = {
    "replaced": {},
    "distinct": {"replacement": False},
    "observed": {"replacement": False, "inclusion": "observed"},
    "estimated": {"replacement": False, "inclusion": "estimated"},
    "per row": {"per_row": True},
    "per row, distinct": {"per_row": True, "replacement": False},
    "per row, observed": {"per_row": True, "replacement": False, "inclusion": "observed"},
    "exclude": {"per_row": True, "exclude": True},
    "exclude, distinct": {"per_row": True, "replacement": False, "exclude": True},
    "race": {"per_row": True, "replacement": False, "S": C - len(NEVER) - 1},
}
TARGET = torch.tensor([0, 3, 7, 9, 8, -100])


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("how", DRAWS)
def test_samplers_give_zero(device: str, kind: str, how: str) -> None:
    sampler = SAMPLERS[kind]()
    options = dict(DRAWS[how])
    num_samples = options.pop("S", 12)
    if options.get("per_row") and kind != "weighted":
        pytest.skip("shared only")
    if options.pop("exclude", False):
        options["exclude"] = torch.tensor([[3, -1]]).expand(len(TARGET), 2)
    never = torch.isin(TARGET, torch.tensor([*NEVER, -100]))
    results = [sampler.sample(TARGET, num_samples, **options)]
    if options.pop("per_row", False):
        keyed = sampler.sample_keyed(TARGET, num_samples, **options)
        results.append(keyed.materialize())
    for samples in results:
        counts = samples.target_log_expected_count
        assert (counts[never] == 0).all()
        assert (counts[~never] != 0).all()
        assert counts.isfinite().all()
        assert not samples.log_expected_count.isnan().any()
    # Asked for by themselves, the logarithms stay -inf.
    ids = torch.tensor([7, 9])
    assert sampler.log_prob(ids).isinf().tolist() == [True, False]
    assert sampler.log_expected_count(ids, 12).isinf().tolist() == [True, False]


@pytest.mark.parametrize("loss", ["softmax", "nce", "negative_sampling", "gbce"])
@pytest.mark.parametrize("how", ["shared", "per row", "keyed"])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_step_with_such_targets(device: str, kind: str, how: str, loss: str) -> None:
    """From the draw to the gradients, against float64."""
    if how != "shared" and kind != "weighted":
        pytest.skip("shared only")
    sampler, target = SAMPLERS[kind](), TARGET[:5]
    g = torch.Generator().manual_seed(5)
    h, w, b = (torch.randn(shape, generator=g) for shape in ((5, 19), (C, 19), (C,)))
    if how == "keyed":
        samples = sampler.sample_keyed(target, 12)
    else:
        samples = sampler.sample(target, 12, per_row=how == "per row")
    options = {"objective": loss, "reduction": "sum"}
    leaves = [x.requires_grad_() for x in (h, w, b)]
    ours = ssc.sampled_softmax_loss(h, w, target, samples, bias=b, **options)
    ours.backward()
    p = Problem(h, w, b, target, samples.materialize(), {"objective": loss}).to(torch.float64)
    # By the probabilities alone.
    counts = p.samples.target_log_expected_count
    assert torch.equal(counts == 0, torch.isin(target, torch.tensor(NEVER)))
    expected = option_truth(p)[0].sum()
    expected.backward()
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
    for got, want in zip(leaves, p.leaves, strict=True):
        torch.testing.assert_close(got.grad.double(), want.grad, rtol=1e-4, atol=1e-5)


def test_cntk(device: str) -> None:
    frequency = ssc.cntk.random_sample_inclusion_frequency(weights(), 12, False)
    assert (frequency[NEVER] == 0).all()
    for allow_duplicates in (True, False):
        head = ssc.cntk.CrossEntropyWithSampledSoftmax(C, 6, 12, weights(), allow_duplicates)
        hidden = torch.randn(5, 6, requires_grad=True)
        _, loss, _ = head(hidden, TARGET[:5])
        loss.sum().backward()
        assert loss.isfinite().all()
        assert hidden.grad.isfinite().all()
        assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("unique", [False, True])
def test_tensorflow(device: str, unique: bool) -> None:
    """Its samplers say 0, and its losses, NaN there (tensorflow #10284), are finite here."""
    labels = torch.tensor([[0], [5], [1]])
    values = ssc.tf.fixed_unigram_candidate_sampler(
        labels, 1, 9, unique, C, num_reserved_ids=2, unigrams=torch.arange(1.0, C - 1)
    )
    assert (values.true_expected_count.flatten() == 0).tolist() == [True, False, True]
    w, b, h = torch.randn(C, 8, requires_grad=True), torch.zeros(C), torch.randn(3, 8)
    for name in ("sampled_softmax_loss", "nce_loss"):
        function = getattr(ssc.tf, name)
        loss = function(w, b, labels, h, 9, C, 1, values)
        one = torch.where(values.true_expected_count == 0, 1.0, values.true_expected_count)
        torch.testing.assert_close(
            loss, function(w, b, labels, h, 9, C, 1, values._replace(true_expected_count=one))
        )
        loss.sum().backward()
        assert w.grad.isfinite().all()


def test_diagnose_counts_them(native: str) -> None:
    h, w = torch.randn(5, 8), torch.randn(C, 8)
    target = TARGET[:5]
    d = ssc.diagnose(h, w, target, ssc.WeightedSampler(weights()), 12, num_draws=2)
    assert d.targets_never_drawn == 3
    assert "3 of 5" in str(d)
    assert any("3 of the 5 targets" in line for line in d.advice)
    d = ssc.diagnose(h, w, target, ssc.InBatchSampler(), 4, num_draws=2)
    assert d.targets_never_drawn == 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_is_smoothed_by_samples_that_do_not_count(device: str, reduction: str) -> None:
    """A batch that is all padding has no in-batch samples, and must not harm the model."""
    smoothed = ssc.Softmax(label_smoothing=0.1)
    h, w = torch.randn(4, 6, requires_grad=True), torch.randn(50, 6, requires_grad=True)
    padding = torch.full((4,), -100)
    nothing = ssc.Samples(torch.arange(5), torch.full((5,), torch.inf))
    for target, samples in (
        (padding, ssc.InBatchSampler(num_classes=50).sample(padding, 12)),
        (torch.arange(4), nothing),
    ):
        loss = ssc.sampled_softmax_loss(
            h, w, target, samples, objective=smoothed, reduction=reduction
        )
        assert not loss.any()
        assert not any(grad.any() for grad in torch.autograd.grad(loss.sum(), (h, w)))

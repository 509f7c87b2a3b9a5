"""Tables, probabilities and ids of any content, as memory that was never filled has it.

No kernel follows an id outside [0, C): IndexError on the CPU, where the reference obeys the same
rule, and NaN where a GPU would have to be waited for. What the sanitizers see of it is in
tests/cpp/test_garbage.cpp and test_simt_garbage.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.garbage import BITS, OUTSIDE, TABLES, C
from helpers.samplers import key
from sampled_softmax_cuda import proposals
from sampled_softmax_cuda.ops import sample as ops
from sampled_softmax_cuda.ops.negatives import Source
from sampled_softmax_cuda.proposals import Method, Proposal
from sampled_softmax_cuda.samples import KeyedSamples

B, D, S = 7, 20, 20
BY_CUDA_OPERATORS = ("simt", "ptx")  # no error, as on a GPU


def weighted(table: str = "random") -> Proposal:
    """The probabilities of a good sampler beside a table that is none."""
    entries = TABLES[table](torch.empty(C, dtype=torch.int64))
    q = torch.arange(1.0, C + 1, dtype=torch.float64)
    return proposals.weighted(entries, (q / q.sum()).view(torch.int64), C)


def draw(
    proposal: Proposal,
    target: Tensor,
    method: Method,
    *,
    per_row: bool,
    exclude: Tensor | None = None,
    num_samples: int = S,
) -> ssc.Samples:
    """Samples, as samplers ask the operators or the reference for them."""
    if not per_row:
        ids, _, *counts = ops.sample(proposal, key(5), target, num_samples, method, None)
        return ssc.Samples(ids, *counts)
    rest = (num_samples, method, None, exclude, True)
    ids, _, log_count, target_count = ops.sample(proposal, key(5), target[:, None], *rest)
    return ssc.Samples(ids, log_count, target_count[:, 0])


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    h, w, b = torch.randn(B, D, generator=g), torch.randn(C, D, generator=g), torch.randn(C)
    target = torch.randint(C, (B,), generator=g)
    return h.requires_grad_(), w.requires_grad_(), b.requires_grad_(), target


def exclude_lists(target: Tensor) -> Tensor:
    return torch.stack((target, (target + 1) % C, torch.full_like(target, -1)), dim=1)


def loss_of(samples: ssc.Samples | KeyedSamples, **options: Any) -> tuple[Tensor, list[Tensor]]:
    h, w, b, target = problem()
    loss = ssc.sampled_softmax_loss(h, w, target, samples, bias=b, reduction="none", **options)
    loss.sum().backward()
    return loss.detach(), [leaf.grad.to_dense() for leaf in (h, w, b)]


def assert_harmless(samples: ssc.Samples | KeyedSamples, **options: Any) -> None:
    """Rows whose ids are all classes have a finite loss and gradient, others NaN."""
    loss, (grad_input, *_) = loss_of(samples, **options)
    ids = samples.materialize().ids
    good = ((ids >= 0) & (ids < C)).all(dim=-1).expand(B)
    assert loss[good].isfinite().all()
    assert grad_input[good].isfinite().all()
    assert loss[~good].isnan().all()
    assert grad_input[~good].isnan().all()


HOW: dict[str, tuple[Method, bool, bool]] = {
    "shared": (Method.WITH_REPLACEMENT, False, False),
    "shared, distinct": (Method.DISTINCT, False, False),
    "per row": (Method.WITH_REPLACEMENT, True, False),
    "per row, distinct": (Method.DISTINCT, True, False),
    "exclude": (Method.WITH_REPLACEMENT, True, True),
    "exclude, distinct": (Method.DISTINCT, True, True),
    "shared race": (Method.RACE, False, False),  # which reads no table
    "exclude, race": (Method.RACE, True, True),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("how", HOW)
def test_draws_from_a_table_that_is_none(backend: str, how: str, table: str) -> None:
    method, per_row, excluding = HOW[how]
    target = problem()[3]
    options = {"per_row": per_row, "exclude": exclude_lists(target) if excluding else None}
    # Nearly all buckets of a table of -1 are full of their own classes.
    good = table == "all -1" or method == Method.RACE
    if backend in BY_CUDA_OPERATORS or good:
        samples = draw(weighted(table), target, method, **options)
        outside = (samples.ids < 0) | (samples.ids >= C)
        assert bool(outside.any()) != good
        assert (samples.ids[outside] == -1).all()
        assert_harmless(samples)
        return
    with pytest.raises(IndexError, match=r"alias table is not valid.*C=33.*update\(weights\)"):
        draw(weighted(table), target, method, **options)


@pytest.mark.parametrize("loss", ["softmax", "nce"])
@pytest.mark.parametrize("how", [how for how in HOW if "shared" not in how])
@pytest.mark.parametrize("sparse_grad", [False, True])
def test_keyed_rows_of_a_table_that_is_none(
    backend: str, how: str, loss: str, sparse_grad: bool
) -> None:
    """The kernels draw in the forward and in the backward pass."""
    target = problem()[3]
    method, _, excluding = HOW[how]
    keyed = KeyedSamples(
        key(5),
        weighted(),
        *(S, method, None, exclude_lists(target) if excluding else None, (B,), None),
    )
    options = {"objective": loss, "sparse_grad": sparse_grad}
    if backend in BY_CUDA_OPERATORS or method == Method.RACE:
        assert_harmless(keyed, **options)
        return
    with pytest.raises(IndexError, match=r"alias table is not valid"):
        loss_of(keyed, **options)


def test_gradients_of_a_table_that_is_none(compiled: str) -> None:
    """The operators for gradients, which draw anew."""
    h, w, b, target = (t.detach() for t in problem())
    proposal = weighted()
    hits, ones = target[:, None].contiguous(), torch.ones(B)
    for method in Method:
        rest = (S, int(method), None, None, True, 1.0, 0.0, True, False, ones, True)
        source = (None, None, key(1), *proposal)
        arguments = (h, w, b, ones, hits, None, *source, *rest)
        if compiled == "native" and method != Method.RACE:  # a race reads no table
            with pytest.raises(RuntimeError, match="alias table is not valid"):
                torch.ops.sampled_softmax.negatives_grads(*arguments)
            continue
        grad_input, grad_weight, _, rows = torch.ops.sampled_softmax.negatives_grads(*arguments)
        assert rows.min() >= 0
        assert rows.max() < C
        finite = method == Method.RACE
        assert bool(grad_input.isfinite().all()) == finite
        assert bool(grad_weight.isfinite().all()) == finite


@pytest.mark.parametrize("value", BITS)
@pytest.mark.parametrize("how", HOW)
def test_probabilities_that_are_none(backend: str, how: str, value: str) -> None:
    """The ids stay classes, and distinct; log n is NaN rather than wrong."""
    method, per_row, excluding = HOW[how]
    good = ssc.WeightedSampler(torch.arange(1.0, C + 1))._proposal()
    bits = good.probability_bits.clone()
    bits.view(torch.float64)[::3] = BITS[value]
    target = problem()[3]
    exclude = torch.tensor([[1, 4, -1]]).expand(B, 3).contiguous() if excluding else None
    samples = draw(
        proposals.weighted(good.table, bits, C), target, method, per_row=per_row, exclude=exclude
    )
    assert ((samples.ids >= 0) & (samples.ids < C)).all()
    for ids, count in (
        (samples.ids, samples.log_expected_count),
        (target, samples.target_log_expected_count),
    ):
        assert torch.equal(count.isnan(), ids % 3 == 0) or excluding
    if method != Method.WITH_REPLACEMENT:
        for row in samples.ids.reshape(-1, S):
            assert row.unique().numel() == S


@pytest.mark.parametrize("value", BITS)
def test_excluded_probabilities_that_are_none(backend: str, value: str) -> None:
    """Nothing can be said of what is left, and the search for it ends."""
    good = ssc.WeightedSampler(torch.ones(C))._proposal()
    bits = torch.full((C,), BITS[value], dtype=torch.float64).view(torch.int64)
    target = problem()[3]
    try:
        samples = draw(
            proposals.weighted(good.table, bits, C),
            target,
            Method.WITH_REPLACEMENT,
            per_row=True,
            exclude=exclude_lists(target),
        )
    except RuntimeError:
        assert backend not in BY_CUDA_OPERATORS
        return
    assert (samples.ids < C).all()
    assert not samples.log_expected_count.isinf().any()


@pytest.mark.parametrize("method", [Method.WITH_REPLACEMENT, Method.DISTINCT])
def test_a_table_that_gives_one_class_ends(backend: str, method: Method) -> None:
    """Each row excludes the only class that ever comes, or wants others too."""
    bits = ssc.WeightedSampler(torch.ones(C))._proposal().probability_bits
    zeros = torch.zeros(C, dtype=torch.int64)  # class 0 for every bucket
    proposal = proposals.weighted(zeros, bits, C)
    target = torch.zeros(2, dtype=torch.int64)
    exclude = target[:, None].contiguous() if method == Method.WITH_REPLACEMENT else None
    options = {"per_row": True, "exclude": exclude, "num_samples": 3}
    if backend in BY_CUDA_OPERATORS:
        samples = draw(proposal, target, method, **options)
        assert (samples.ids == -1).all()
        assert samples.log_expected_count.isnan().all()
        return
    with pytest.raises(RuntimeError, match="by their probabilities"):
        draw(proposal, target, method, **options)
    if method == Method.DISTINCT and backend != "reference":  # where it takes seconds
        with pytest.raises(RuntimeError, match="by their probabilities"):
            draw(proposal, target, method, per_row=False, num_samples=3)


LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "nce": {"objective": "nce"},
    "softcap": {"softcap": 5.0},
    "cosine": {"cosine": True},
    "smoothing": {"objective": ssc.Softmax(label_smoothing=0.1)},
}


@pytest.mark.parametrize("bad", OUTSIDE)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("per_row", [False, True])
def test_ids_outside(device: str, bad: int, loss: str, per_row: bool) -> None:
    if per_row and loss in ("cosine", "smoothing"):
        pytest.skip("shared samples only")
    g = torch.Generator().manual_seed(4)
    ids = torch.randint(C, (B, S) if per_row else (S,), generator=g)
    ids[(2, 3) if per_row else (3,)] = bad
    samples = ssc.Samples(ids, torch.randn(ids.shape, generator=g), None)
    if device in BY_CUDA_OPERATORS:
        assert_harmless(samples, **LOSSES[loss])
        return
    with pytest.raises(IndexError, match=rf"samples.ids must be in \[0, C=33\), got {bad}"):
        loss_of(samples, **LOSSES[loss])


@pytest.mark.parametrize("bad", OUTSIDE)
@pytest.mark.parametrize("loss", LOSSES)
def test_targets_and_exclusions_outside(device: str, bad: int, loss: str) -> None:
    """A class that a row must not have may be any number."""
    h, w, b, target = problem()
    samples = ssc.Samples(torch.arange(S))
    options = {"bias": b, "reduction": "none", **LOSSES[loss]}
    if loss != "smoothing":
        lists = (torch.full((B, 2), value) for value in (bad, -1))
        with_it, without = (
            ssc.sampled_softmax_loss(h, w, target, samples, exclude=some, **options)
            for some in lists
        )
        assert torch.equal(with_it, without)
    target[4] = bad
    if device in BY_CUDA_OPERATORS:
        losses = ssc.sampled_softmax_loss(h, w, target, samples, **options)
        losses.sum().backward()
        assert losses.isnan().nonzero().flatten().tolist() == [4]
        return
    with pytest.raises(IndexError, match=f"target must be in .* got {bad}"):
        ssc.sampled_softmax_loss(h, w, target, samples, **options)


@pytest.mark.parametrize("bad", OUTSIDE)
def test_operators_refuse_what_they_would_follow(native: str, bad: int) -> None:
    """Those of the CPU, of which the public functions have checked the arguments."""
    h, w, b, target = (t.detach() for t in problem())
    ops = torch.ops.sampled_softmax
    ids, hits = torch.arange(S), torch.full((B, 1), bad)
    wrong, ones = ids.clone(), torch.ones(B)
    wrong[5] = bad
    own = ids.expand(B, S).contiguous()
    wrong_own = own.clone()
    wrong_own[2, 4] = bad
    wrong_target = target.clone()
    wrong_target[1] = bad
    rest = (1.0, 0.0, True, False)
    some = (h, w, b, ones, hits, None)
    shared, of_rows = (*Source(ids, None), *rest), (*Source(own, None), *rest)
    fits = ops.negatives_rows(*some, *shared)[0]
    assert torch.equal(fits, ops.negatives_rows(*some[:4], hits * 0 - 1, None, *shared)[0])
    ops.negatives_grads(*some, *shared, ones, True)
    ops.negatives_rows(*some, *of_rows)
    ops.negatives_grads(*some, *of_rows, ones, True)
    wrong_shared, wrong_rows = Source(wrong, None), Source(wrong_own, None)
    calls: list[tuple[Any, ...]] = [
        (ops.negatives_rows, *some, *wrong_shared, *rest),
        (ops.negatives_grads, *some, *wrong_shared, *rest, ones, False),
        (ops.negatives_loss_and_grads, *some, wrong, None, *rest, ones, target[:, None]),
        (ops.negatives_rows, *some, *wrong_rows, *rest),
        (ops.negatives_grads, *some, *wrong_rows, *rest, ones, False),
        (ops.negatives_grads, *some, *wrong_rows, *rest, ones, True),
        (ops.negatives_rows, *some, *Source(None, None), *rest),
        (ops.loss_rows, h, w, b, wrong_target, ids, None, None, 1.0, True, -100),
        (ops.loss_rows, h, w, b, target, wrong, None, None, 1.0, True, -100),
        (ops.exact_loss_rows, h, w, b, wrong_target, 1.0, -100),
        (ops.unit_rows, w, wrong),
        (ops.logits, h, w, b, 0, bad, 1.0),
        (ops.logits, h, w, b, bad, C, 1.0),
    ]
    if bad != -1:  # no target
        negatives = (*some, ids, None, *rest, ones)
        calls.append((ops.negatives_loss_and_grads, *negatives, wrong_target[:, None]))
        calls.append((ops.target_products, h, w, wrong_target[:, None]))
    classes = torch.full((1, 4), bad)
    grads = (torch.zeros(B, D), torch.zeros(4, D), torch.zeros(4))
    calls.append(
        (ops.add_target_grads, *grads, classes, h, w, target[:, None], ones[:, None], None)
    )
    for operator, *arguments in calls:
        if operator is ops.logits and bad == C and arguments[3] == 0:
            continue  # all classes
        if operator is ops.logits and bad == C:
            assert operator(*arguments).shape == (B, 0)
            continue
        message = r"out of range|not within|one of the classes|either ids or a key"
        with pytest.raises(RuntimeError, match=message):
            operator(*arguments)
    assert all(not grad.any() for grad in grads)


@pytest.mark.parametrize("bad", [-1, C, 2**40])
@pytest.mark.parametrize("per_row", [False, True])
def test_the_reference_checks_for_itself(bad: int, per_row: bool) -> None:
    h, w, b, target = problem()
    ids = torch.full((B, S) if per_row else (S,), 2)
    ids[..., 1] = bad
    samples = ssc.Samples(ids)
    for name, options in LOSSES.items():
        if per_row and ("cosine" in options or name == "smoothing"):
            continue
        with pytest.raises(IndexError, match=rf"\[0, C=33\), got {bad}"):
            ssc.reference.sampled_softmax_loss(h, w, target, samples, bias=b, **options)

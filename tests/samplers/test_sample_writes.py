"""Samplers whose tensors are made in inference mode, or written by others than their methods."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sampled_softmax_cuda as ssc
from helpers.sampler_states import (
    ALL,
    MAKERS,
    SEEN,
    TARGET,
    C,
    assert_same,
    counted,
    differ,
    numbers,
    other,
    state_tensors,
    tensorflows_unigram,
    weighted,
)
from helpers.samplers import zipf

# --- inference mode -------------------------------------------------------------------------------


@ALL
def test_inference_mode_leaves_no_trace(device: str, kind: str) -> None:
    with torch.inference_mode():
        sampler = MAKERS[kind]()
        expected = numbers(sampler)
        twins = [MAKERS[kind](), other(kind), copy.deepcopy(sampler)]
        for twin in twins:
            twin.load_state_dict(MAKERS[kind]().state_dict(), assign=twin is twins[0])
            assert_same(numbers(twin), expected)
        twins.append(MAKERS[kind]().to("meta").to("cpu"))
    for twin in (sampler, *twins):
        assert not any(t.is_inference() for t in state_tensors(twin).values())
        assert_same(numbers(twin), expected)
        if not isinstance(twin, ssc.Sampler):
            twin.observe(TARGET)
            continue
        twin.train()
        hidden, weight = torch.randn(4, 6, requires_grad=True), torch.randn(C, 6)
        for replacement in (True, False):
            samples = twin.sample(TARGET, 12, replacement=replacement)
            ssc.sampled_softmax_loss(hidden, weight, TARGET, samples).backward()


@pytest.mark.parametrize("kind", ["log_uniform", "uniform", "weighted", "counted"])
def test_rows_can_train_after_inference(device: str, kind: str) -> None:
    sampler = kind if kind in ("log_uniform", "uniform") else MAKERS[kind]()
    head = ssc.SampledSoftmaxLoss(
        4, C, 12, sampler=sampler, per_row=True, replacement=False, sparse_grad=True
    )
    hidden = torch.randn(4, 4, requires_grad=True)
    with torch.inference_mode():
        head(hidden, TARGET)
        if isinstance(head.sampler, ssc.StreamingSampler):
            head.sampler.rebuild()
        if isinstance(head.sampler, ssc.WeightedSampler):
            head.sampler.update(zipf(C, 2.0))
    for _ in range(2):
        head(hidden, TARGET).backward()


# --- written by others ----------------------------------------------------------------------------


def write(sampler: nn.Module, source: nn.Module) -> None:
    with torch.no_grad():
        for name, tensor in state_tensors(sampler).items():
            tensor.copy_(state_tensors(source)[name])


@ALL
def test_outside_writes_are_seen(device: str, kind: str) -> None:
    sampler, source = MAKERS[kind](), other(kind)
    assert differ(numbers(sampler), numbers(source))  # plans and totals are remembered
    write(sampler, source)
    assert_same(numbers(sampler), numbers(source))


def test_plans_and_sizes_follow_outside_writes(device: str) -> None:
    sampler = ssc.WeightedSampler(torch.rand(C))
    sampler.log_expected_count(TARGET, 5, replacement=False)
    plan = sampler._plans[5, "expected"].tries
    ten = torch.zeros(C)
    ten[:10] = 1
    write(sampler, ssc.WeightedSampler(ten))
    assert sampler.num_drawable == 10
    n = sampler.log_expected_count(torch.tensor([1]), 5, replacement=False).exp()
    torch.testing.assert_close(n, torch.tensor([0.5]))
    assert sampler._plans[5, "expected"].tries is plan  # compiled graphs hold it
    with pytest.raises(ValueError, match="at most 10"):
        sampler.sample(torch.tensor([1]), 20, replacement=False)


@pytest.mark.parametrize("per_row", [True, False])
def test_a_spoilt_table_is_refused(device: str, per_row: bool) -> None:
    head = ssc.SampledSoftmaxLoss(4, C, 12, sampler=weighted(), per_row=per_row)
    hidden = torch.randn(4, 4)
    head.sampler.table.random_()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"WeightedSampler: its table.*load_state_dict"):
            head(hidden, TARGET)
    head.sampler.update(zipf(C))
    head(hidden, TARGET)
    head.sampler.table = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"table must be int64 \[C=50\], got torch.int64 \[3\]"):
        head(hidden, TARGET)
    head.sampler = weighted()
    # An average of tables is no table, and says so.
    mean = (head.sampler.table + ssc.WeightedSampler(zipf(C).flip(0)).table) // 2
    head.sampler.table.copy_(mean)
    with pytest.raises(RuntimeError, match="its table"):
        head(hidden, TARGET)


def test_a_learnt_table_is_built_anew_from_the_counts(device: str) -> None:
    sampler = counted()
    sampler.sample(TARGET, 3)
    table = sampler.stream.table
    for spoil in (
        lambda: table.table.random_(),
        lambda: sampler.counts.copy_(torch.arange(C) + 1),
        lambda: table.probability_bits.zero_(),
    ):
        spoil()
        expected = numbers(ssc.WeightedSampler(sampler.counts))
        assert_same(numbers(sampler), expected)
        q = sampler.counts.double() / sampler.counts.sum()
        torch.testing.assert_close(sampler.log_prob(torch.arange(C)).double().exp(), q)
    sampler.stream.pending.fill_(10**6)
    sampler.sample(TARGET, 3)
    assert int(sampler.stream.pending) == len(TARGET)


def test_counts_that_others_write_while_learning(device: str) -> None:
    sampler = counted(staleness=10.0)
    sampler.counts.mul_(2)
    sampler.update(SEEN)
    new = torch.bincount(SEEN, minlength=C)
    expected = 2 * (1 + new) + new
    assert torch.equal(sampler.counts, expected)
    q = sampler.log_prob(torch.arange(C)).double().exp()
    torch.testing.assert_close(q, expected.double() / expected.sum(), rtol=1e-6, atol=0)
    state = tensorflows_unigram()
    state.counts.mul_(2)
    state.observe(SEEN)
    torch.testing.assert_close(state.probability(torch.arange(C)), q, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["weighted", "counted"])
def test_compiled_graphs_of_copies(native: None, kind: str) -> None:
    """A copy checks its table at its first draw, which a graph must not hold."""
    torch.compiler.reset()
    sampler = copy.deepcopy(MAKERS[kind]()).eval()
    assert isinstance(sampler, ssc.Sampler)
    sampler.sample(TARGET, 3)  # no graph holds the building of a table
    compiled = torch.compile(
        lambda target: sampler.sample(target, 12, replacement=False),
        fullgraph=True,
        backend="aot_eager",
    )
    for twin in (sampler, copy.deepcopy(other(kind))):
        sampler.load_state_dict(twin.state_dict())
        torch.manual_seed(3)
        got = compiled(TARGET)
        torch.manual_seed(3)
        assert_same(got, sampler.sample(TARGET, 12, replacement=False))


@pytest.mark.parametrize("how", ["load", "update", "write"])
def test_a_plan_that_others_weights_refuse_is_forgotten(either: str, how: str) -> None:
    """Weights that can't be drawn from without replacement still can with it."""
    far_apart = torch.tensor([1.0, 1e-310], dtype=torch.float64)
    sampler, ids = ssc.WeightedSampler(torch.ones(2)), torch.tensor([0, 1])
    sampler.sample(ids, 2, replacement=False)
    if how == "load":
        sampler.load_state_dict(ssc.WeightedSampler(far_apart).state_dict())
    elif how == "update":
        sampler.update(far_apart)
    else:
        write(sampler, ssc.WeightedSampler(far_apart))
    assert sampler.sample(ids, 3).ids.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="2 distinct classes would take more draws"):
        sampler.sample(ids, 2, replacement=False)

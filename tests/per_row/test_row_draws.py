"""Draws of which every row has its own: which ids, how they are counted, and what is refused."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.backends import use_backend
from helpers.samplers import (
    KINDS,
    assert_chi_square,
    key,
    make_sampler,
    ordered_probabilities,
    probabilities,
    zipf,
)
from sampled_softmax_cuda._philox import philox_bits
from sampled_softmax_cuda.ops import sample as ops
from sampled_softmax_cuda.proposals import Method, Proposal
from sampled_softmax_cuda.reference import sample as reference
from sampled_softmax_cuda.reference.distributions import distribution
from sampled_softmax_cuda.samplers.base import DrawOptions

METHODS = list(Method)


def proposal_of(kind: str, num_classes: int) -> Proposal:
    sampler = make_sampler(kind, num_classes)
    return sampler._proposal()


def exclusions(rows: int, width: int, num_classes: int) -> Tensor:
    """Lists with padding, ids at the head of the distribution, and repeated ones."""
    g = torch.Generator().manual_seed(5)
    lists = torch.randint(-1, num_classes, (rows, width), generator=g)
    lists[:, 1] = 0
    lists[::2, 2] = lists[::2, 0]
    return lists


def stream_of(kind: str, num_classes: int, row: int, count: int) -> list[int]:
    """The first draws of a row, one subsequence for each."""
    bits = philox_bits(key(11, 3), 0, count, torch.tensor([row + 1]))
    ids: list[int] = distribution(proposal_of(kind, num_classes)).ids(bits)[0].tolist()
    return ids


# Few classes, so that draws repeat; more than a block of draws; and ids past 2^32.
CASES = [(kind, c, s) for kind in KINDS for c, s in ((60, 25), (5000, 1300))] + [
    ("uniform", 2**40, 513),
    ("log_uniform", 2**40, 513),
]


@pytest.mark.parametrize("excluded", [False, True], ids=["all", "excluding"])
@pytest.mark.parametrize("method", [Method.WITH_REPLACEMENT, Method.DISTINCT])
@pytest.mark.parametrize(("kind", "num_classes", "num_samples"), CASES)
def test_a_row_takes_the_first_draws_of_its_stream_that_will_do(
    backend: str, kind: str, num_classes: int, num_samples: int, method: Method, excluded: bool
) -> None:
    rows = 3
    lists = exclusions(rows, 5, num_classes) if excluded else None
    target = torch.zeros(rows, 1, dtype=torch.int64)
    arguments = (proposal_of(kind, num_classes), key(11, 3), target, num_samples, method)
    ids, draws, _, _ = ops.sample(*arguments, None, lists, True)
    for row in range(rows):
        banned = set() if lists is None else set(lists[row].tolist())
        wanted: list[int] = []
        seen: set[int] = set()
        allowed = 0
        for drawn in stream_of(kind, num_classes, row, 16 * num_samples):
            allowed += drawn not in banned
            if drawn in banned or (method == Method.DISTINCT and drawn in seen):
                continue
            wanted.append(drawn)
            seen.add(drawn)
            if len(wanted) == num_samples:
                break
        assert ids[row].tolist() == wanted, f"row {row}"
        assert int(draws[row]) == allowed


def many_draws(kind: str, method: Method, excluded: bool) -> Any:
    """Each sampler's 1e5 draws and more over all methods."""
    num_classes, rows, num_samples = 700, 150, 120
    lists = exclusions(rows, 6, num_classes) if excluded else None
    arguments = (proposal_of(kind, num_classes), key(2**62 + 9, -7), torch.arange(rows)[:, None])
    return ops.sample(*arguments, num_samples, method, None, lists, True)


@functools.cache
def draws_of_the_reference(kind: str, method: Method, excluded: bool) -> Any:
    with use_backend("reference"):
        return many_draws(kind, method, excluded)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_path_gives_the_ids_of_the_reference(backend: str, kind: str, method: Method) -> None:
    for excluded in (False, True):
        got = many_draws(kind, method, excluded)
        want = draws_of_the_reference(kind, method, excluded)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
        for name, ours, theirs in zip(("ids", "target"), got[2:], want[2:], strict=True):
            torch.testing.assert_close(ours, theirs, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("replacement", [True, False])
def test_a_rows_draws_depend_on_neither_s_nor_the_batch(backend: str, replacement: bool) -> None:
    sampler = make_sampler("log_uniform", 3000)
    drawn = {}
    for rows, num_samples in ((7, 40), (7, 300), (2, 40)):
        generator = torch.Generator().manual_seed(1)
        target = torch.zeros(rows, dtype=torch.int64)
        drawn[rows, num_samples] = sampler.sample(
            target, num_samples, per_row=True, replacement=replacement, generator=generator
        ).ids
    assert torch.equal(drawn[7, 40], drawn[7, 300][:, :40])
    assert torch.equal(drawn[2, 40], drawn[7, 40][:2])
    assert not torch.equal(drawn[7, 40][0], drawn[7, 40][1])


@pytest.mark.parametrize("excluded", [False, True], ids=["all", "excluding"])
@pytest.mark.parametrize("inclusion", [None, "expected", "observed", "estimated"])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_classes_that_are_left(
    backend: str, kind: str, inclusion: str | None, excluded: bool
) -> None:
    num_classes, num_samples = 400, 50
    sampler = make_sampler(kind, num_classes)
    target = torch.tensor([[0, 399], [17, -100], [0, 5]])  # -100: a row's padding
    lists = exclusions(3, 4, num_classes) if excluded else None
    options: dict[str, Any] = {"exclude": lists, "num_true": 2}
    if inclusion is not None:
        options.update(replacement=False, inclusion=inclusion)
    torch.manual_seed(4)
    samples = sampler.sample(target, num_samples, per_row=True, **options)
    torch.manual_seed(4)
    keyed = sampler.sample_keyed(target, num_samples, **options)

    q = probabilities(kind, num_classes)
    plan = None if inclusion is None else sampler._plan(DrawOptions(num_samples, False, inclusion))
    drawn = reference.sample(
        sampler._proposal(), keyed.key, target, num_samples, keyed._method, None, lists, True
    )[1]
    for row in range(3):
        banned = [] if lists is None else [k for k in set(lists[row].tolist()) if k >= 0]
        left = 1.0 - q[banned].sum()

        def truth(ids: np.ndarray, row: int = row, left: float = left) -> np.ndarray:
            share = np.minimum(q[ids] / left, 1.0)
            if plan is None:
                return np.log(num_samples * share)
            tries = float(drawn[row]) if plan.tries is None else float(plan.tries)
            return np.log(-np.expm1(tries * np.log1p(-share)))

        ours = samples.log_expected_count[row].double().numpy()
        np.testing.assert_allclose(ours, truth(samples.ids[row].numpy()), rtol=3e-6, atol=3e-7)
        valid = target[row].numpy() >= 0
        ours = samples.target_log_expected_count[row].double().numpy()
        np.testing.assert_allclose(
            ours[valid], truth(target[row].numpy()[valid]), rtol=3e-6, atol=3e-7
        )
        assert (ours[~valid] == 0).all()
    again = keyed.materialize()
    assert torch.equal(again.ids, samples.ids)
    torch.testing.assert_close(again.log_expected_count, samples.log_expected_count)
    torch.testing.assert_close(again.target_log_expected_count, samples.target_log_expected_count)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_with_replacement_have_the_probabilities_of_what_is_left(
    backend: str, kind: str
) -> None:
    num_classes, rows = 30, 400
    sampler = make_sampler(kind, num_classes)
    lists = torch.tensor([0, 7, -1, 29]).expand(rows, 4)
    torch.manual_seed(8)
    ids = sampler.sample(torch.zeros(rows, dtype=torch.int64), 50, per_row=True, exclude=lists).ids
    q = probabilities(kind, num_classes)
    q[[0, 7, 29]] = 0.0
    assert_chi_square(np.bincount(ids.flatten().numpy(), minlength=num_classes), q / q.sum())


@pytest.mark.parametrize("method", [Method.DISTINCT, Method.RACE])
def test_distinct_draws_come_in_the_order_of_draws_without_replacement(
    backend: str, method: Method
) -> None:
    q = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    sampler = ssc.WeightedSampler(torch.tensor(q))
    arguments = sampler._proposal()
    rows = 1500
    lists = torch.tensor([[1]]).expand(rows, 1).contiguous()
    target = torch.zeros(rows, 0, dtype=torch.int64)
    ids = ops.sample(arguments, key(3), target, 3, method, None, lists, True)[0]
    left = [0, 2, 3, 4, 5]
    expected = ordered_probabilities(list(q[left] / q[left].sum()), 3)
    names = {tuple(left[k] for k in order): p for order, p in expected.items()}
    counts = dict.fromkeys(names, 0)
    for row in ids.tolist():
        counts[tuple(row)] += 1
    assert_chi_square(list(counts.values()), list(names.values()))


def test_masked_samples_are_those_of_the_list(either: str) -> None:
    ids = torch.tensor([3, 9, 3, 4])
    count = torch.tensor([0.5, 1.0, 1.5, 2.0])
    lists = torch.tensor([[3, -1], [8, 4], [-1, -1]])
    masked = ssc.mask_samples(ssc.Samples(ids, count, None), lists)
    inf = torch.inf
    want = torch.tensor([[inf, 1.0, inf, 2.0], [0.5, 1.0, 1.5, inf], [0.5, 1.0, 1.5, 2.0]])
    assert torch.equal(masked.log_expected_count, want)
    assert torch.equal(masked.ids, ids.expand(3, 4))
    with pytest.raises(ValueError, match=r"exclude must be \[\*, E\] .* got \[2, 1\]"):
        ssc.mask_samples(masked, torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"exclude must be an int64 Tensor, got torch\.int32"):
        ssc.mask_samples(masked, lists.int())


class TestErrors:
    target = torch.tensor([1, 2])

    @pytest.mark.parametrize(
        ("options", "kind", "message"),
        [
            ({"exclude": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, r"got \[3, 1\]"),
            ({"exclude": torch.zeros(2, 1)}, TypeError, "exclude must be int64"),
            ({"exclude": torch.tensor([[0], [9]])}, IndexError, "below num_classes=9, got 9"),
            ({"num_true": 3}, ValueError, r"target must be \[\*, num_true=3\]"),
            (
                {"exclude": torch.arange(9).expand(2, 9)},
                ValueError,
                "exclude leaves row 0 0 classes of positive probability, 1 are needed",
            ),
            (
                {"exclude": torch.tensor([[0, 0, 1], [5, 6, 7]]), "replacement": False},
                ValueError,
                "exclude leaves row 1 6 classes of positive probability, 7 are needed",
            ),
        ],
    )
    def test_arguments(
        self, either: str, options: dict[str, Any], kind: type[Exception], message: str
    ) -> None:
        sampler = ssc.LogUniformSampler(9)
        with pytest.raises(kind, match=f"LogUniformSampler.sample: .*{message}"):
            sampler.sample(self.target, 7, per_row=True, **options)
        with pytest.raises(kind, match=f"LogUniformSampler.sample_keyed: .*{message}"):
            sampler.sample_keyed(self.target, 7, **options)

    def test_hardly_any_probability_left(self, either: str) -> None:
        sampler = ssc.WeightedSampler(torch.tensor([1.0, 1e-9]))
        with pytest.raises(ValueError, match="less than a millionth"):
            sampler.sample(self.target, 2, per_row=True, exclude=torch.zeros(2, 1).long())

    def test_options_of_rows_need_rows(self) -> None:
        sampler = ssc.UniformSampler(9)
        with pytest.raises(ValueError, match="exclude needs per_row=True"):
            sampler.sample(self.target, 2, exclude=torch.zeros(2, 1).long())
        with pytest.raises(ValueError, match="num_true needs per_row=True"):
            sampler.sample(self.target, 2, num_true=1)


@pytest.mark.parametrize("replacement", [True, False])
def test_a_list_that_leaves_too_few_gives_no_number_on_a_gpu(simt: str, replacement: bool) -> None:
    # Nothing waits for the device there to raise an error.
    lists = torch.tensor([[0, 1, 2], [2, -1, -1]])
    samples = ssc.UniformSampler(3).sample(
        torch.tensor([0, 1]), 2, per_row=True, replacement=replacement, exclude=lists
    )
    assert samples.ids[0].tolist() == [-1, -1]
    assert samples.log_expected_count[0].isnan().all()
    assert samples.target_log_expected_count.isnan().tolist() == [True, False]
    assert set(samples.ids[1].tolist()) <= {0, 1}


def test_the_race_is_chosen_for_what_is_left(either: str) -> None:
    # 20 of 40 classes are a matter of a few draws each; with up to 20 excluded, of many.
    sampler = ssc.WeightedSampler(zipf(40, 2.0))
    target = torch.zeros(2, dtype=torch.int64)
    lists = torch.arange(20).expand(2, 20)
    assert sampler.sample_keyed(target, 5, replacement=False)._method == Method.DISTINCT
    samples = sampler.sample_keyed(target, 20, replacement=False, exclude=lists)
    assert samples._method == Method.RACE
    for row in samples.materialize().ids.tolist():
        assert sorted(row) == list(range(20, 40))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_opcheck(compiled: str, kind: str, method: Method) -> None:
    lists = torch.tensor([[1, -1], [2, 2]])
    target = torch.tensor([[3], [4]])
    for exclude, keep_ids in ((None, True), (lists, True), (lists, False)):
        arguments = (key(1), target, *proposal_of(kind, 9), 4, int(method), None, exclude)
        torch.library.opcheck(
            torch.ops.sampled_softmax.sample.default, (*arguments, True, keep_ids)
        )

"""Arguments that `ssc.tf` takes as TensorFlow does, counts that broadcast and labels of any dtype;
and sizes that it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.tensorflow_losses import B, C, D, S, assert_same, ours, truth
from helpers.tensorflow_table import LOSSES, random_case

rng = np.random.default_rng(5)
TRUE_COUNTS: dict[str, Any] = {
    "scalar": 0.5,
    "[1]": [0.5],
    "[B, 1]": rng.uniform(0.1, 2, (B, 1)).astype(np.float32),
    "[1, T]": rng.uniform(0.1, 2, (1, 3)).astype(np.float32),
    "[T]": rng.uniform(0.1, 2, 3).astype(np.float32),
    "[B, T]": rng.uniform(0.1, 2, (B, 3)).astype(np.float32),
}
COUNTS: dict[str, Any] = {
    "scalar": torch.tensor(0.25),
    "[1]": [0.25],
    "[S]": rng.uniform(0.1, 2, S).astype(np.float32),
    "[1, S]": rng.uniform(0.1, 2, (1, S)).astype(np.float32),
    "[B, 1]": rng.uniform(0.1, 2, (B, 1)).astype(np.float32),
    "[B, S]": rng.uniform(0.1, 2, (B, S)).astype(np.float32),
}


def case_of(loss: str, num_true: int, remove: bool) -> dict[str, Any]:
    return random_case(np.random.default_rng(7), loss, num_true, remove, (B, C, D, S))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("true_count", TRUE_COUNTS)
@pytest.mark.parametrize("count", COUNTS)
def test_counts_broadcast(
    either: str, loss: str, remove: bool, true_count: str, count: str
) -> None:
    """To [B, T] and [B, S], in float64 and by hand."""
    case = case_of(loss, 3, remove)
    ids = case["sampled_values"][0]
    case["sampled_values"] = (ids, TRUE_COUNTS[true_count], COUNTS[count])
    assert_same(case, ours(case), truth(case), 2e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_counts_of_one_label(device: str, loss: str) -> None:
    for true_count in (0.5, TRUE_COUNTS["[B, 1]"]):
        for count in COUNTS.values():
            case = case_of(loss, 1, True)
            case["sampled_values"] = (case["sampled_values"][0], true_count, count)
            assert_same(case, ours(case), truth(case), 2e-5)


def test_counts_that_do_not_broadcast() -> None:
    case = case_of("nce_loss", 3, True)
    ids, true_count, count = case["sampled_values"]
    for values, message in (
        (
            (ids, np.ones((B, 2)), count),
            r"true_expected_count must be \[7, 3\], or broadcast to it",
        ),
        ((ids, np.ones(B), count), r"true_expected_count must be \[7, 3\], .* got \[7\]"),
        ((ids, true_count, np.ones((B, 1, 1))), r"sampled_expected_count must be \[7, 15\]"),
        ((ids, true_count, np.ones(S - 1)), r"sampled_expected_count must be .* got \[14\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ours({**case, "sampled_values": values})


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int16, torch.int32, torch.float32, torch.float64, torch.bfloat16],
    ids=str,
)
def test_labels_are_cast(either: str, loss: str, dtype: torch.dtype) -> None:
    """Also sampled_candidates. Fractions are cut off, as tf.cast does."""
    case = case_of(loss, 2, True)
    expected = ours(case)
    ids, *counts = case["sampled_values"]
    labels, ids = (torch.as_tensor(x).to(dtype) for x in (case["labels"], ids))
    if dtype == torch.float32:
        labels = labels + 0.5
    got = ours({**case, "labels": labels, "sampled_values": (ids, *counts)})
    for name, value in got.items():
        assert torch.equal(value, expected[name])


def test_labels_of_one_dimension() -> None:
    case = case_of("sampled_softmax_loss", 1, True)
    with pytest.raises(ValueError, match=r"got \[7\]: pass labels\[:, None\]"):
        ours({**case, "labels": np.zeros(B, dtype=np.int64)})


BIG = 2**31 - 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ssc.tf.learned_unigram_candidate_sampler([[1]], 1, 2, True, BIG),
            "learned_unigram_candidate_sampler: range_max must be below 2147483647, as in",
        ),
        (
            lambda: ssc.tf.LearnedUnigram(2**40),
            "LearnedUnigram: range_max must be below 2147483647, as in TensorFlow, since every",
        ),
        (
            lambda: ssc.tf.fixed_unigram_sampler(BIG, num_reserved_ids=BIG - 1, unigrams=[1]),
            "fixed_unigram_candidate_sampler: range_max must be below 2147483647, as in",
        ),
        (  # before anything of that size is made
            lambda: ssc.tf.fixed_unigram_sampler(5, num_reserved_ids=2**50, unigrams=[1]),
            "range_max must be the number of classes, 1125899906842625, reserved ones included",
        ),
        (
            lambda: ssc.tf.all_candidate_sampler([[1]], 1, BIG, True),
            "all_candidate_sampler: num_sampled must be below 2147483647",
        ),
        (
            lambda: ssc.tf.log_uniform_candidate_sampler([[1]], 1, 2, True, 2**52),
            "log_uniform_candidate_sampler: range_max must be below 4503599627370496, up to",
        ),
        (
            lambda: ssc.tf.uniform_candidate_sampler([[1]], 1, 2, True, 2**63),
            "uniform_candidate_sampler: range_max must be below 9223372036854775808",
        ),
        (
            lambda: ssc.tf.uniform_candidate_sampler([[1]], 1, 6, True, 5),
            "uniform_candidate_sampler: num_sampled must be at most 5.*when unique=True; got 6",
        ),
    ],
)
def test_sizes_that_do_not_go(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_large_sizes_that_go() -> None:
    for sampler, size in (
        (ssc.tf.uniform_candidate_sampler, 2**63 - 1),
        (ssc.tf.log_uniform_candidate_sampler, 2**52 - 1),
    ):
        values = sampler([[size - 1]], 1, 5, True, size)
        assert float(values.true_expected_count) > 0

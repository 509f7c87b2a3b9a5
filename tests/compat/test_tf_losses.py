"""`ssc.tf`'s losses and accidental hits: against TensorFlow's own numbers, from a table and fresh
where it is installed; against float64; and what is different on purpose."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.tensorflow_losses import LEAVES, B, C, D, S, assert_same, ours, truth
from helpers.tensorflow_table import (
    LOSSES,
    TABLE,
    hits_by_tensorflow,
    loss_by_tensorflow,
    random_case,
    tensorflow,
)


def test_the_losses_are_tensorflows(device: str) -> None:
    """Values and gradients as TensorFlow computed them: both losses, 1 to 4 labels, hits or not."""
    entries = json.loads(TABLE.read_text())["losses"]
    assert len(entries) == 16
    for entry in entries:
        case, expected = entry["case"], entry["expected"]
        assert_same(case, truth(case), expected, 1e-5)
        for sparse_grad in (False, True):
            assert_same(case, ours(case, sparse_grad=sparse_grad), expected, 1e-5)


@pytest.mark.tensorflow
def test_random_cases_beside_tensorflow(native: None) -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    rng = np.random.default_rng(5)
    for loss in LOSSES:
        for num_true in (1, 2, 3, 4):
            for remove_hits in (True, False):
                for sizes in ((9, 60, 16, 20), (1, 8, 1, 8), (33, 500, 40, 100)):
                    case = random_case(rng, loss, num_true, remove_hits, sizes)
                    expected = loss_by_tensorflow(tensorflow(), case)
                    assert_same(case, ours(case), expected, 2e-4)


@pytest.mark.tensorflow
def test_accidental_hits_beside_tensorflow() -> None:
    """The same for distinct samples; of repeated ones TensorFlow's are a part of ours."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    rng = np.random.default_rng(6)
    for num_true in (1, 2, 3, 4):
        labels = rng.integers(0, 30, (12, num_true))
        for sampled in (rng.permutation(30)[:20], rng.integers(0, 30, 40)):
            found = hit_set(ssc.tf.compute_accidental_hits(labels, sampled, num_true))
            expected = hits_by_tensorflow(tensorflow(), labels, sampled)
            if len(set(sampled)) == len(sampled):
                assert found == expected
            else:
                assert set(expected) < set(found)


def hit_set(hits: Any) -> list[tuple[int, int]]:
    return sorted(zip(hits.indices.tolist(), hits.ids.tolist(), strict=True))


def test_accidental_hits_are_tensorflows() -> None:
    entry = json.loads(TABLE.read_text())["hits"]
    hits = ssc.tf.compute_accidental_hits(entry["labels"], entry["sampled"], 2)
    assert hit_set(hits) == [tuple(pair) for pair in entry["expected"]]
    assert (hits.indices.dtype, hits.ids.dtype) == (torch.int32, torch.int64)
    assert hits.weights.tolist() == [float(np.finfo(np.float32).min)] * 4


def test_accidental_hits_by_counting() -> None:
    labels, sampled = torch.randint(9, (20, 3)), torch.randint(9, (50,))
    hits = ssc.tf.compute_accidental_hits(labels, sampled, 3)
    rows, _, positions = (labels[:, :, None] == sampled).nonzero().unbind(1)
    assert torch.equal(hits.indices.long(), rows)
    assert torch.equal(hits.ids, positions)


def make_case(loss: str, num_true: int, remove_hits: bool) -> dict[str, Any]:
    """Samples that repeat, hit and miss."""
    rng = np.random.default_rng(num_true)
    case = random_case(rng, loss, num_true, remove_hits, (B, C, D, S))
    ids, true_count, count = case["sampled_values"]
    ids[5:8] = ids[0]  # a label of the first row, four times among the samples
    return {**case, "sampled_values": (ids, true_count, count)}


@pytest.mark.parametrize("num_true", [1, 3])
@pytest.mark.parametrize("remove_hits", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_duplicate_of_a_hit_is_removed(
    device: str, loss: str, remove_hits: bool, num_true: int
) -> None:
    """TensorFlow leaves out the last duplicate only, and trains against the others."""
    case = make_case(loss, num_true, remove_hits)
    expected = truth(case)
    assert_same(case, ours(case), expected, 1e-5)
    assert_same(case, ours(case, torch.float64), expected, 1e-6)  # the counts are float32


@pytest.mark.tensorflow
def test_tensorflow_removes_one_duplicate_of_a_hit() -> None:
    """The documented difference: this fails once TensorFlow removes all of them."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    case = make_case("sampled_softmax_loss", 1, True)
    theirs = loss_by_tensorflow(tensorflow(), case)["loss"]
    assert theirs[0] > float(ours(case)["loss"][0]) + 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_default_samples_are_log_uniform_and_unique(device: str, loss: str) -> None:
    case = make_case(loss, 2, True)
    torch.manual_seed(3)
    values = ssc.tf.log_uniform_candidate_sampler(case["labels"], 2, S, True, C)
    expected = truth({**case, "sampled_values": values})
    torch.manual_seed(3)
    assert_same(case, ours(case, sampled_values=None), expected, 1e-5)


def test_default_of_hits() -> None:
    """Removed in sampled softmax, kept in NCE, as in TensorFlow."""
    for loss, removes in (("sampled_softmax_loss", True), ("nce_loss", False)):
        case = make_case(loss, 2, removes)
        given = {k: v for k, v in case.items() if k != "remove_accidental_hits"}
        assert_same(case, ours(given), truth(case), 1e-5)


def test_a_seed_draws_anew_at_every_call() -> None:
    case = make_case("sampled_softmax_loss", 1, True)
    ssc.tf.set_seed(11)
    first = [ours(case, sampled_values=None, seed=4)["loss"] for _ in range(2)]
    ssc.tf.set_seed(11)
    again = [ours(case, sampled_values=None, seed=4)["loss"] for _ in range(2)]
    assert not torch.equal(*first)
    assert torch.equal(torch.stack(first), torch.stack(again))


def test_all_classes_give_the_full_cross_entropy(device: str) -> None:
    """With hits removed, and all candidates, and one label."""
    h, w, b = torch.randn(B, D), torch.randn(C, D), torch.randn(C)
    labels = torch.randint(C, (B, 1))
    values = ssc.tf.all_candidate_sampler(labels, 1, C, True)
    loss = ssc.tf.sampled_softmax_loss(w, b, labels, h, C, C, 1, values)
    z = torch.nn.functional.linear(h.double(), w.double(), b.double())
    expected = torch.nn.functional.cross_entropy(z, labels[:, 0], reduction="none")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)


def test_inputs_as_numpy_users_have_them(either: str) -> None:
    """Labels as int32 arrays, tensors or lists; counts as arrays; weights in shards."""
    case = make_case("nce_loss", 2, True)
    expected = ours(case)["loss"]
    weights, biases = torch.tensor(case["weights"]), torch.tensor(case["biases"])
    shards = {"weights": list(weights.split(9)), "biases": tuple(biases.split(9))}
    inputs = torch.tensor(case["inputs"])
    rest = {k: v for k, v in case.items() if k not in ("loss", "upstream", *LEAVES)}
    labels = case["labels"].astype(np.int32)
    for given in (labels, torch.tensor(labels), labels.tolist()):
        loss = ssc.tf.nce_loss(**{**rest, **shards, "inputs": inputs, "labels": given})
        assert torch.equal(loss, expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"labels": [1] * B}, ValueError, r"labels must be \[B, num_true=2\], got \[7\]"),
        ({"labels": [[1, 2]]}, ValueError, r"labels must be \[B=7, num_true=2\].*got \[1, 2\]"),
        ({"labels": [[1j, 2.0]] * B}, TypeError, "labels must be real numbers, got .*complex64"),
        (
            {"labels": [[1, C]] * B},
            IndexError,
            r"labels must be in \[0, C=40\), got 40 at \[0, 1\]",
        ),
        ({"labels": [[1, -100]] * B}, IndexError, r"got -100 at \[0, 1\]"),
        ({"num_true": 0}, ValueError, "num_true must be at least 1, got 0"),
        ({"num_sampled": 0}, ValueError, "num_sampled must be at least 1, got 0"),
        ({"num_sampled": 4}, ValueError, r"sampled_candidates must be \[4\], got \[15\]"),
        ({"num_classes": C + 1}, ValueError, r"weights must be \[num_classes=41, D=6\]"),
        ({"sampled_values": (1, 2)}, TypeError, "sampled_values must be .*got tuple"),
        ({"weights": np.zeros((C, D))}, TypeError, "weights must be a Tensor, got ndarray"),
        ({"biases": torch.zeros(C, 1)}, ValueError, r"bias must be \[C=40\].*got \[40, 1\]"),
        ({"inputs": torch.zeros(D)}, ValueError, r"inputs must be \[B, D\], got \[6\]"),
        ({"partition_strategy": "row"}, ValueError, "partition_strategy must be one of.*'row'"),
        (
            {"partition_strategy": "mod", "weights": [torch.zeros(20, D)] * 2},
            ValueError,
            "weights in 2 shards must follow partition_strategy='div'",
        ),
    ],
    ids=str,
)
def test_errors(loss: str, changes: dict[str, Any], kind: Any, message: str) -> None:
    case = make_case(loss, 2, True)
    leaves = {name: torch.tensor(case[name]) for name in LEAVES}
    rest = {k: v for k, v in case.items() if k not in ("loss", "upstream")}
    with pytest.raises(kind, match=f"^{loss}: .*{message}"):
        getattr(ssc.tf, loss)(**{**rest, **leaves, **changes})


def test_too_many_unique_samples() -> None:
    arguments = (torch.zeros(C, D), torch.zeros(C), [[0]], torch.zeros(1, D), C + 1, C)
    with pytest.raises(ValueError, match=r"num_sampled must be at most 40.*range_max=40.*got 41"):
        ssc.tf.sampled_softmax_loss(*arguments)


@pytest.mark.parametrize("loss", LOSSES)
def test_compiled_losses_draw_anew(native: None, loss: str) -> None:
    """torch.compile gives what eager mode gives: other negatives in every step."""
    arguments = (torch.randn(C, D), torch.zeros(C), torch.randint(C, (B, 2)), torch.randn(B, D))
    function = getattr(ssc.tf, loss)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for step in (compiled, function):
        torch.manual_seed(2)
        results.append([step(*arguments, S, C, 2) for _ in range(2)])
    assert not torch.equal(*results[0])
    torch.testing.assert_close(*results)

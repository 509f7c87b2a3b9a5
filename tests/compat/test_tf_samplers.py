"""`ssc.tf`'s candidate samplers: the counts are TensorFlow's, the draws follow them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.samplers import assert_chi_square
from helpers.tensorflow_table import (
    DRAWS,
    TABLE,
    TRUE_CLASSES,
    UNIGRAMS,
    counts_by_tensorflow,
    learned_counts,
    tensorflow,
)

tf = ssc.tf
C, S = 12, 5
SAMPLERS = {
    "uniform": (tf.uniform_candidate_sampler, {}, np.ones(C)),
    "log_uniform": (
        tf.log_uniform_candidate_sampler,
        {},
        np.log1p(1 / np.arange(1.0, C + 1)),
    ),
    "fixed": (
        tf.fixed_unigram_candidate_sampler,
        {"unigrams": UNIGRAMS[:10], "num_reserved_ids": 2, "distortion": 0.7},
        np.array([0.0, 0.0, *(u**0.7 for u in UNIGRAMS[:10])]),
    ),
    "learned": (tf.learned_unigram_candidate_sampler, {}, np.ones(C)),
}


@pytest.fixture(autouse=True)
def _fresh_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another one taught the learned unigrams."""
    monkeypatch.setattr(tf._learned, "_states", {})


def probability(function: str, arguments: dict[str, Any]) -> np.ndarray:
    """q of the classes that a sampler of the table draws from, in float64."""
    k = np.arange(arguments.get("range_max", arguments["num_sampled"]), dtype=np.float64)
    if function.startswith("log_uniform"):
        weights = np.log1p(1 / (k + 1))
    elif function.startswith("fixed"):
        reserved = arguments.get("num_reserved_ids", 0)
        weights = np.array(arguments["unigrams"]) ** arguments.get("distortion", 1.0)
        weights = np.concatenate((np.zeros(reserved), weights))
        weights = weights[arguments.get("shard", 0) :: arguments.get("num_shards", 1)]
    else:
        weights = np.ones_like(k)
    return weights / weights.sum()


def assert_counts(function: str, arguments: dict[str, Any], theirs: Any) -> None:
    """Our true_expected_count is TensorFlow's; without replacement, for the t of its own draw.

    t is what TensorFlow's count of one class says, a whole number, and gives all other counts.
    """
    truth = np.array(TRUE_CLASSES)
    theirs = np.array(theirs, dtype=np.float64)
    S, unique = arguments["num_sampled"], arguments["unique"]
    if unique and not function.startswith("all"):
        q = torch.from_numpy(probability(function, arguments))
        tries = math.log1p(-theirs[0, 1]) / math.log1p(-float(q[truth[0, 1]]))
        assert tries == pytest.approx(round(tries), abs=1e-3)
        assert round(tries) > S
        count = tf._candidates.expected_count(q, S, torch.tensor(round(tries)))
        np.testing.assert_allclose(count.numpy()[truth], theirs, rtol=2e-5)
    else:
        ours = getattr(tf, function)(TRUE_CLASSES, 2, **arguments)
        np.testing.assert_allclose(ours.true_expected_count.numpy(), theirs, rtol=2e-5)


def test_expected_counts_are_tensorflows(device: str) -> None:
    for entry in json.loads(TABLE.read_text())["counts"]:
        assert_counts(entry["function"], entry["arguments"], entry["expected"])


def test_learned_counts_are_tensorflows() -> None:
    """Call by call: each counts its labels after it has drawn."""
    for expected in json.loads(TABLE.read_text())["learned"]:
        values = tf.learned_unigram_candidate_sampler(TRUE_CLASSES, 2, 6, False, 14)
        np.testing.assert_allclose(values.true_expected_count.numpy(), expected, rtol=1e-6)


@pytest.mark.tensorflow
def test_expected_counts_beside_tensorflow() -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    fresh = tensorflow()
    for function, arguments in DRAWS:
        assert_counts(function, arguments, counts_by_tensorflow(fresh, function, arguments))
    for expected in learned_counts(fresh, 4):
        values = tf.learned_unigram_candidate_sampler(TRUE_CLASSES, 2, 6, False, 14)
        np.testing.assert_allclose(values.true_expected_count.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_draws_and_counts(either: str, kind: str, unique: bool) -> None:
    """The draws follow q, and the counts belong to the number of tries of the draw."""
    sampler, options, weights = SAMPLERS[kind]
    q = weights / weights.sum()
    first, all_tries = np.zeros(C), []
    for _ in range(250):
        if kind == "learned":
            options = {"state": tf.LearnedUnigram(C)}
        ids, true_count, count = sampler([[*range(C)]], C, S, unique, C, **options)
        assert ids.shape == (S,)
        assert not unique or len(set(ids.tolist())) == S
        assert torch.equal(count, true_count[0][ids])
        tries = number_of_tries(true_count[0].double().numpy(), q)
        expected = S * q if tries == S else -np.expm1(tries * np.log1p(-q))
        np.testing.assert_allclose(true_count[0].numpy(), expected, rtol=1e-5)
        first[int(ids[0])] += 1
        all_tries.append(tries)
    assert_chi_square(first, q)
    if not unique:
        assert {*all_tries} == {S}
    elif kind == "uniform":  # where the mean is known: C / (C - i) tries for the i-th class
        mean = sum(C / (C - i) for i in range(S))
        assert np.mean(all_tries) == pytest.approx(mean, abs=0.25)


def number_of_tries(count: np.ndarray, q: np.ndarray) -> int:
    """The tries that counts [C] belong to, told by the rarest class."""
    rare = int(np.where(q > 0, q, 1).argmin())
    if np.allclose(count, S * q, rtol=1e-5, atol=0):
        return S
    tries = math.log1p(-count[rare]) / math.log1p(-q[rare])
    assert tries == pytest.approx(round(tries), rel=1e-4)
    assert round(tries) > S
    return round(tries)


def test_tries_equal_to_samples_count_as_with_duplicates() -> None:
    """TensorFlow's rule: S q where no try was wasted, though the classes are unique."""
    q = torch.tensor([0.5, 0.1], dtype=torch.float64)
    count = tf._candidates.expected_count(q, 3, torch.tensor(3))
    torch.testing.assert_close(count, torch.tensor([1.5, 0.3]))
    count = tf._candidates.expected_count(q, 3, torch.tensor(4))
    torch.testing.assert_close(count, torch.tensor([1 - 0.5**4, 1 - 0.9**4]))


def test_probabilities_of_rare_classes() -> None:
    """Where differences of logarithms in float32 would be 5 % off, wrong by half, and 0."""
    for k in (10**6, 2**24, 10**9):
        values = tf.log_uniform_candidate_sampler([[k]], 1, 1, False, 2**31)
        expected = math.log1p(1 / (k + 1)) / math.log1p(2**31)
        assert float(values.true_expected_count) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_seeds(kind: str) -> None:
    """A seed names a stream, for each sampler and size; None draws from torch's generator."""
    sampler, options, _ = SAMPLERS[kind]

    def draw(seed: int | None, size: int = S) -> list[int]:
        values: Any = sampler([[0]], 1, size, False, C, seed=seed, **options)
        return values.sampled_candidates.tolist()

    tf.set_seed(1)
    stream = [draw(5, 12) for _ in range(4)]
    assert len({tuple(ids) for ids in [*stream, draw(6, 12)]}) == 5
    tf._learned._states.clear()
    tf.set_seed(1)
    draw(7, 12)  # streams don't disturb each other
    draw(5, 11)
    tf._learned._states.clear()
    assert [draw(5, 12) for _ in range(4)] == stream
    tf.set_seed(2)
    assert draw(5, 12) != stream[0]
    state = torch.get_rng_state()
    draw(5)
    assert torch.equal(torch.get_rng_state(), state)
    unseeded = draw(None, 30)
    torch.set_rng_state(state)
    tf._learned._states.clear()
    assert len(draw(None, 30)) == len(unseeded)
    assert not torch.equal(torch.get_rng_state(), state)


def test_a_vocabulary_file(tmp_path: Path) -> None:
    """The last entry of a line counts; quotes, more commas and empty lines don't matter."""
    path = tmp_path / "vocab.csv"
    path.write_text("the,4\n\nof,x,2.5\n1.5\n")
    sampler = tf.fixed_unigram_sampler(4, path, num_reserved_ids=1)
    expected = torch.tensor([0.0, 0.5, 0.3125, 0.1875])
    torch.testing.assert_close(sampler.log_prob(torch.arange(4)).exp(), expected)
    values = tf.fixed_unigram_candidate_sampler(
        [[1]], 1, 2, False, 4, vocab_file=str(path), num_reserved_ids=1
    )
    assert values.true_expected_count.item() == pytest.approx(1.0)
    path.write_text("the,4\nof,two\n")
    with pytest.raises(ValueError, match="got 'two' in line 2"):
        tf.fixed_unigram_sampler(2, path)


def test_shards_are_the_ids_that_belong_to_them() -> None:
    """Also beside reserved ids, where TensorFlow counts from the shard's own number of them."""
    whole = torch.tensor([0.0, 0.0, 0.0, *UNIGRAMS[:9]], dtype=torch.float64)
    for shard in range(4):
        part = whole[shard::4]
        sampler = tf.fixed_unigram_sampler(
            3, num_reserved_ids=3, num_shards=4, shard=shard, unigrams=UNIGRAMS[:9]
        )
        q = sampler.log_prob(torch.arange(3)).double().exp()
        torch.testing.assert_close(q, part / part.sum(), rtol=1e-6, atol=0)


def test_a_sampler_built_once() -> None:
    sampler = tf.fixed_unigram_sampler(10, unigrams=UNIGRAMS[:10])
    tf.set_seed(0)
    once = tf.fixed_unigram_candidate_sampler([[1, 2]], 2, 6, True, 10, unigrams=sampler, seed=1)
    tf.set_seed(0)
    always = tf.fixed_unigram_candidate_sampler(
        [[1, 2]], 2, 6, True, 10, unigrams=UNIGRAMS[:10], seed=1
    )
    for a, b in zip(once, always, strict=True):
        assert torch.equal(a, b)


def test_learned_states() -> None:
    """Names and sizes have counts of their own; a state of the caller's is saved with a model."""
    draw = tf.learned_unigram_candidate_sampler
    for _ in range(3):
        draw([[0], [2]], 1, 4, False, 4, name="first")
    counts = [
        draw([[0]], 1, 4, False, size, name=name).true_expected_count.item()
        for name, size in (("first", 4), ("second", 4), ("first", 8))
    ]
    assert counts == pytest.approx([4 * 4 / 10, 1.0, 0.5])

    state = tf.LearnedUnigram(4)
    draw([[3], [3]], 1, 4, False, 4, state=state)
    assert state.counts.tolist() == [1, 1, 1, 3]
    other = tf.LearnedUnigram(4)
    other.load_state_dict(state.state_dict())
    count = draw([[3], [0]], 1, 6, False, 4, state=other).true_expected_count
    torch.testing.assert_close(count, torch.tensor([[3.0], [1.0]]))


def test_learned_draws_follow_the_counts() -> None:
    """By rejection, by the race where rejection would take too long, and with duplicates."""
    state = tf.LearnedUnigram(6)
    state.observe(torch.tensor([0] * 300 + [4] * 100))
    q = state.probability(torch.arange(6))
    rare = tf.LearnedUnigram(6)
    rare.observe(torch.zeros(4000, dtype=torch.int64))
    first = np.zeros((2, 6))
    for seed in range(500):
        key = torch.tensor([seed, 7])
        assert sorted(rare.draw(key, 6, True)[0].tolist()) == [*range(6)]
        first[0][int(state.draw(key, 2, True)[0][0])] += 1
        first[1][int(state.draw(key, 1, False)[0])] += 1
    for row in first:
        assert_chi_square(row, q.tolist())


@pytest.mark.parametrize(
    ("sampler", "arguments", "kind", "message"),
    [
        ("uniform", ([[1]], 1, 6, True, 5), ValueError, "num_sampled must be at most 5.*got 6"),
        ("uniform", ([[1]], 1, 0, True, 5), ValueError, "num_sampled must be at least 1, got 0"),
        ("uniform", ([1], 1, 2, True, 5), ValueError, r"true_classes must be \[B, num_true=1\]"),
        ("uniform", ([[5]], 1, 2, True, 5), IndexError, r"in \[0, C=5\), got 5 at \[0, 0\]"),
        ("uniform", ([[0.5]], 1, 2, True, 5), TypeError, "must be int32 or int64, got .*float32"),
        ("uniform", ([[0]], 1, 2, True, 0), ValueError, "range_max must be at least 1, got 0"),
        ("uniform", ([[0]], 1, 2, "no", 5), TypeError, "unique must be a bool, got str"),
        ("uniform", ([[0]], 1, 2, True, 5, 0.5), TypeError, "seed must be an int or None"),
        ("log_uniform", ([[0]], 2, 2, True, 5), ValueError, r"num_true=2\], got \[1, 1\]"),
        ("all", ([[5]], 1, 5, True), IndexError, r"in \[0, C=5\), got 5"),
        ("fixed_unigram", ([[0]], 1, 2, True, 5), ValueError, "exactly one of.*got neither"),
        (
            "fixed_unigram",
            ([[0]], 1, 2, True, 5, "", 1.0, 1, 1, 0, [1.0, 2.0]),
            ValueError,
            "range_max must be the number of classes, 3, reserved ones included, got 5",
        ),
        (
            "fixed_unigram",
            ([[0]], 1, 3, True, 3, "", 1.0, 1, 1, 0, [1.0, 2.0]),
            ValueError,
            "num_sampled must be at most 2.*range_max=3.*got 3",
        ),
        (
            "fixed_unigram",
            ([[0]], 1, 2, True, 2, "", 1.0, 0, 2, 2, [1.0, 2.0]),
            ValueError,
            r"shard must be in \[0, num_shards=2\), got 2",
        ),
        ("learned_unigram", ([[7]], 1, 2, True, 5), IndexError, "got 7"),
        ("learned_unigram", ([[0]], 1, 6, True, 5), ValueError, "num_sampled must be at most 5"),
    ],
    ids=str,
)
def test_errors(sampler: str, arguments: tuple[Any, ...], kind: Any, message: str) -> None:
    name = f"{sampler}_candidate_sampler"
    with pytest.raises(kind, match=f"^{name}: .*{message}"):
        getattr(tf, name)(*arguments)


def test_a_state_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="range_max must be the number of classes of state, 4"):
        tf.learned_unigram_candidate_sampler([[0]], 1, 2, True, 5, state=tf.LearnedUnigram(4))


def test_a_seed_under_torch_compile_is_refused() -> None:
    """It would be a constant of the graph: the same negatives in every step."""
    draw = torch.compile(
        lambda labels: tf.uniform_candidate_sampler(labels, 1, 4, False, 9, seed=3),
        backend="eager",
        fullgraph=True,
    )
    with pytest.raises(Exception, match=r"seed must be None under torch\.compile"):
        draw(torch.zeros(1, 1, dtype=torch.int64))

"""Which ids a key gives: the generator, the stream, and the same answer from every path."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.backends import use_backend
from helpers.samplers import KINDS, key, make_sampler, parts, zipf
from sampled_softmax_cuda import _philox as philox
from sampled_softmax_cuda.ops import sample as ops
from sampled_softmax_cuda.proposals import Method
from sampled_softmax_cuda.reference import alias_table, distributions

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


@pytest.mark.parametrize(("counter", "seed", "answer"), KNOWN_ANSWERS)
def test_known_answers_of_random123(
    counter: tuple[int, ...], seed: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    words = tuple(torch.tensor([word]) for word in counter)
    got = philox.philox4x32_10(words, torch.tensor(signed(seed[0] | seed[1] << 32)))
    assert tuple(int(word) for word in got) == answer


def test_the_wide_product_is_that_of_python_integers() -> None:
    numbers = [0, 1, 2**32 - 1, 2**32, 0x123456789ABCDEF0, 2**63, 2**64 - 1]
    x = torch.tensor([signed(n) for n in numbers])
    for c in [1, 7, 2**32 - 1, 2**40 + 3, 2**63 - 1, 2**64 - 1]:
        high, low = philox.mul_wide(x, c)
        assert high.tolist() == [signed(n * c >> 64) for n in numbers]
        assert low.tolist() == [signed(n * c & (2**64 - 1)) for n in numbers]


def test_a_draw_is_one_half_of_a_counter() -> None:
    # offset + i // 2 wraps at 2^64; the seed's sign bit is a bit like any other.
    for seed, offset in [(0, 0), (-1, 5), (3, 2**63 - 1), (-(2**63), -1)]:
        bits = philox.philox_bits(key(seed, offset), 0, 7)
        for start in (2, 4, 6):
            assert torch.equal(
                philox.philox_bits(key(seed, offset), start, 7 - start), bits[start:]
            )
    assert torch.equal(philox.philox_bits(key(1, 8), 0, 4), philox.philox_bits(key(1, 5), 6, 4))


# Sizes at which something changes: one class, one bit of alias, more classes than a block of draws,
# and for the samplers that store nothing more than 2^24, 2^31, 2^32 and 2^40.
SIZES = {
    "uniform": [1, 2, 3, 1000, 2**24 + 3, 2**31 + 5, 2**32 - 1, 2**32, 2**40, 2**62 + 1],
    "log_uniform": [1, 2, 3, 1000, 2**24 + 3, 2**31 + 5, 2**32, 2**40, 2**52 - 1],
    "weighted": [1, 2, 3, 1000, 65537],
}


@pytest.mark.parametrize(
    ("kind", "num_classes"), [(kind, c) for kind in KINDS for c in SIZES[kind]]
)
def test_every_path_gives_the_ids_of_the_reference(
    backend: str, kind: str, num_classes: int
) -> None:
    sampler = make_sampler(kind, num_classes)
    for num_samples in (1, 33, 700):  # below, beside and above a vector and a block
        for seed in (0, 2**62 + 9):
            ids, draws = sampler.draw(key(seed, 77), num_samples)
            with use_backend("reference"):
                expected, _ = sampler.draw(key(seed, 77), num_samples)
            assert torch.equal(ids, expected)
            assert int(draws) == num_samples
            assert int(ids.min()) >= 0
            assert int(ids.max()) < num_classes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_samples", [1, 5, 100, 299, 300])  # the last two by the race
def test_distinct_ids_are_those_of_the_reference(backend: str, kind: str, num_samples: int) -> None:
    sampler = make_sampler(kind, 300)
    for seed in range(5):
        ids, draws = sampler.draw(key(seed), num_samples, replacement=False)
        with use_backend("reference"):
            expected, expected_draws = sampler.draw(key(seed), num_samples, replacement=False)
        assert torch.equal(ids, expected)
        assert int(draws) == int(expected_draws)


@pytest.mark.parametrize("kind", KINDS)
def test_distinct_draws_are_the_first_distinct_ids_in_their_order(device: str, kind: str) -> None:
    # Not torch.unique(stream)[:S]: unique sorts, so the tail of the classes would be cut off.
    sampler = make_sampler(kind, 500)
    stream = sampler.draw(key(4), 5000)[0].tolist()
    for num_samples in (1, 20, 250):
        ids, draws = sampler.draw(key(4), num_samples, replacement=False)
        first: dict[int, int] = {}
        for position, k in enumerate(stream):
            first.setdefault(k, position)
        assert ids.tolist() == list(first)[:num_samples]
        assert int(draws) == list(first.values())[num_samples - 1] + 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_nothing(native: None, kind: str) -> None:
    sampler = make_sampler(kind, 100_000)
    target = torch.arange(40_000)
    before = torch.get_num_threads()
    drawn = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for replacement in (True, False):
                torch.manual_seed(1)
                drawn.append(sampler.sample(target, 50_000, replacement=replacement))
    finally:
        torch.set_num_threads(before)
    for replacement in (0, 1):
        for other in drawn[2 + replacement :: 2]:
            for a, b in zip(parts(drawn[replacement]), parts(other), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 10, 1000, 2**24 - 1, 2**24 + 3, 2**40])
def test_log_uniform_reaches_the_last_class(num_classes: int) -> None:
    # floor(exp(u log C)) - 1, a formula in use elsewhere, never draws it.
    bits = torch.tensor([0, -1])  # the least and the most that 64 bits can be
    assert distributions.LogUniform(num_classes).ids(bits).tolist() == [0, num_classes - 1]
    assert distributions.Uniform(num_classes).ids(bits).tolist() == [0, num_classes - 1]


@pytest.mark.parametrize("kind", KINDS)
def test_all_classes_are_drawn_when_all_are_asked_for(device: str, kind: str) -> None:
    for num_classes in (1, 2, 17, 300):
        ids, draws = make_sampler(kind, num_classes).draw(
            key(num_classes), num_classes, replacement=False
        )
        assert sorted(ids.tolist()) == list(range(num_classes))
        assert int(draws) >= num_classes


def test_large_ids_keep_every_bit(device: str) -> None:
    # Through float32 all would be multiples of 2^(b - 24), through float64 of 2^(b - 53).
    for sampler in (ssc.UniformSampler(2**62 + 1), ssc.LogUniformSampler(2**40)):
        ids = sampler.draw(key(11), 4000)[0]
        large = ids[ids >= 2**25]
        odd = int((large & 1).sum())
        assert large.numel() > 1000
        assert abs(odd - large.numel() / 2) < 4 * (large.numel() / 4) ** 0.5


def implied_probabilities(table: torch.Tensor) -> np.ndarray:
    """Probabilities by an alias table: class i has its part of bucket i, an alias has the rest."""
    num_classes = table.shape[0]
    mask = (1 << num_classes.bit_length()) - 1
    units = [0] * num_classes
    for i, entry in enumerate(table.tolist()):
        unsigned = entry & (2**64 - 1)
        own = unsigned & ~mask
        units[i] += own
        units[unsigned & mask] += 2**64 - own
    return np.array([u / (num_classes * 2**64) for u in units])


@pytest.mark.parametrize(
    "weights",
    [
        torch.tensor([5.0]),
        torch.tensor([0.0, 3.0, 0.0]),
        torch.tensor([1e-200, 1.0, 1e30, 0.0, 7.0], dtype=torch.float64),
        zipf(1000, 3.0),
        zipf(30011, 0.75),
        torch.ones(64),
    ],
    ids=lambda w: f"C={w.shape[0]}",
)
def test_the_alias_table_sums_back_to_the_weights(device: str, weights: torch.Tensor) -> None:
    sampler = ssc.WeightedSampler(weights)
    implied = implied_probabilities(sampler.table)
    wanted = (weights.double() / weights.double().sum()).numpy()
    np.testing.assert_allclose(implied, wanted, rtol=1e-12, atol=1e-17)
    assert (implied[wanted == 0] == 0).all()
    assert (implied[wanted > 0] > 0).all()
    assert abs(implied.sum() - 1) < 1e-12


# The last has several of the chunks that threads take.
@pytest.mark.parametrize("num_classes", [1, 2, 3, 64, 1000, 4097, 70_001])
def test_both_builders_give_the_same_table(native: None, num_classes: int) -> None:
    q = torch.rand(num_classes, dtype=torch.float64) ** 4
    q[::7] = 0
    q[-1] = 1
    q /= q.sum()
    expected = alias_table.build_alias_table(q)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(ops.build_alias_table(q), expected)
    finally:
        torch.set_num_threads(before)


def test_more_classes_than_torch_multinomial_takes(native: None) -> None:
    # torch.multinomial refuses more than 2^24 classes and never draws some just below.
    num_classes = 2**24 + 3
    weights = torch.full((num_classes,), 1e-12)
    last = torch.arange(num_classes - 4, num_classes)
    weights[last] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    ids = ssc.WeightedSampler(weights).draw(key(3), 20_000)[0]
    counts = torch.bincount(ids[ids >= num_classes - 4] - (num_classes - 4), minlength=4)
    assert int(counts.sum()) > 19_900
    expected = torch.tensor([0.4, 0.3, 0.2, 0.1]) * counts.sum()
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_race_of_many_classes_is_the_reference_s(compiled: str, kind: str) -> None:
    """More times of arrival than one block of a GPU sorts: these sorts are kernels of their own."""
    proposal = make_sampler(kind, 20_011)._proposal()
    arguments = (proposal, key(3, 1), key(0)[:0], 300, Method.RACE, None)
    ids, num_draws, *_ = ops.sample(*arguments)
    with use_backend("reference"):
        want_ids, want_draws, *_ = ops.sample(*arguments)
    assert torch.equal(ids, want_ids)
    assert torch.equal(num_draws, want_draws)

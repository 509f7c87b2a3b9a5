"""Samplers as modules: state, copies, devices, generators, torch.compile, operators, bad input."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import sampled_softmax_cuda as ssc
from helpers.backends import use_backend
from helpers.samplers import KINDS, key, make_sampler, parts, zipf
from sampled_softmax_cuda import proposals

TARGET = torch.tensor([[3, 1], [0, 41]])


def assert_same(a: ssc.Samples, b: ssc.Samples) -> None:
    for x, y in zip(parts(a), parts(b), strict=True):
        assert torch.equal(x, y)


def sample(sampler: ssc.Sampler, seed: int = 3, **options: Any) -> ssc.Samples:
    torch.manual_seed(seed)
    return sampler.sample(TARGET, 20, **options)


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replacement", [True, False])
def test_copies_draw_the_same(either: str, kind: str, replacement: bool) -> None:
    sampler = make_sampler(kind, 100)
    expected = sample(sampler, replacement=replacement)  # also fills the cache of plans
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert_same(sample(other, replacement=replacement), expected)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    fresh = ssc.WeightedSampler(torch.ones(100)) if kind == "weighted" else make_sampler(kind, 100)
    sample(fresh, replacement=replacement)
    fresh.load_state_dict(torch.load(file))
    assert_same(sample(fresh, replacement=replacement), expected)


def test_a_state_dict_brings_its_zeros_along(either: str) -> None:
    sampler = ssc.WeightedSampler(torch.ones(4))
    sampler.log_expected_count(torch.tensor([0]), 4, replacement=False)
    sampler.load_state_dict(ssc.WeightedSampler(torch.tensor([1.0, 0.0, 2.0, 0.0])).state_dict())
    assert sampler.num_drawable == 2
    assert set(sampler.draw(key(0), 2, replacement=False)[0].tolist()) == {0, 2}
    with pytest.raises(ValueError, match="at most 2"):
        sampler.log_expected_count(torch.tensor([0]), 4, replacement=False)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_casts_of_a_surrounding_module_round_nothing(either: str, cast: str) -> None:
    # As float16, probabilities below 6e-8 would be 0 and their corrections infinite.
    model = nn.Sequential(nn.Linear(2, 2))
    model.add_module("sampler", ssc.WeightedSampler(zipf(50_000)))
    before = sample(model.sampler, replacement=False)
    getattr(model, cast)()
    assert_same(sample(model.sampler, replacement=False), before)


def test_weights_are_updated_in_place(either: str) -> None:
    sampler = ssc.WeightedSampler(torch.rand(100))
    table = sampler.table
    sample(sampler, replacement=False)
    weights = torch.rand(100) ** 3
    sampler.update(weights)
    assert sampler.table.data_ptr() == table.data_ptr()
    for options in ({}, {"replacement": False}, {"replacement": False, "inclusion": "estimated"}):
        assert_same(sample(sampler, **options), sample(ssc.WeightedSampler(weights), **options))
    sampler.update(torch.cat((torch.ones(30), torch.zeros(70))))
    assert sampler.num_drawable == 30


def test_integer_and_low_precision_weights(either: str) -> None:
    counts = torch.tensor([5, 0, 100, 7])
    expected = ssc.WeightedSampler(counts.double()).log_prob(torch.arange(4))
    for dtype in (torch.int64, torch.int32, torch.float32, torch.bfloat16):
        got = ssc.WeightedSampler(counts.to(dtype)).log_prob(torch.arange(4))
        assert torch.allclose(got, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_weights_of_any_scale(either: str) -> None:
    w = torch.rand(10, dtype=torch.float64) + 0.1
    ids = torch.arange(10)
    expected = ssc.WeightedSampler(w).log_prob(ids)
    for scale in (1e-300, 1e300):  # their sum of squares, or their sum, leaves float64
        for power in (1.0, 2.0, -1.0):
            got = ssc.WeightedSampler(w * scale, power).log_prob(ids)
            reference = ssc.WeightedSampler(w, power).log_prob(ids)
            assert torch.allclose(got, reference, rtol=1e-5)
    assert torch.allclose(expected.exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_repr_says_what_it_draws_from(kind: str) -> None:
    assert "num_classes=12" in repr(make_sampler(kind, 12))


# --- randomness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_decides(either: str, kind: str) -> None:
    sampler = make_sampler(kind, 10**5)
    assert_same(sample(sampler, 1), sample(sampler, 1))
    assert not torch.equal(sample(sampler, 1).ids, sample(sampler, 2).ids)
    assert not torch.equal(sampler.sample(TARGET, 20).ids, sampler.sample(TARGET, 20).ids)
    state = torch.get_rng_state()
    mine = torch.Generator().manual_seed(7)
    first = sampler.sample(TARGET, 20, generator=mine)
    second = sampler.sample(TARGET, 20, generator=mine)
    assert not torch.equal(first.ids, second.ids)
    again = sampler.sample(TARGET, 20, generator=torch.Generator().manual_seed(7))
    assert_same(first, again)
    assert torch.equal(state, torch.get_rng_state())


def test_fewer_samples_are_the_first_of_more(either: str) -> None:
    for kind in KINDS:
        sampler = make_sampler(kind, 1000)
        for replacement in (True, False):
            more = sampler.draw(key(5), 200, replacement=replacement)[0]
            fewer = sampler.draw(key(5), 63, replacement=replacement)[0]
            assert torch.equal(more[:63], fewer)


def test_estimates_of_the_number_of_draws_leave_the_random_state_alone(either: str) -> None:
    sampler = ssc.LogUniformSampler(1000)
    state = torch.get_rng_state()
    sampler.log_expected_count(TARGET, 300, replacement=False, inclusion="estimated")
    assert torch.equal(state, torch.get_rng_state())


# --- torch.compile and the operators --------------------------------------------------------------


def check_compiled(kind: str, **options: Any) -> None:
    torch.compiler.reset()
    sampler = make_sampler(kind, 100)

    def draw(target: torch.Tensor) -> ssc.Samples:
        return sampler.sample(target, 20, **options)

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    first, second = compiled(TARGET), compiled(TARGET)
    torch.manual_seed(1)
    assert_same(first, draw(TARGET))
    # A seed baked into the graph would draw the same ids for ever.
    assert not torch.equal(first.ids, second.ids)
    if isinstance(sampler, ssc.WeightedSampler):
        sampler.update(torch.rand(100) ** 3)
        torch.manual_seed(2)
        updated = compiled(TARGET)
        torch.manual_seed(2)
        assert_same(updated, draw(TARGET))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("inclusion", ["expected", "observed", "estimated"])
def test_compiled_samplers(native: None, kind: str, replacement: bool, inclusion: str) -> None:
    check_compiled(kind, replacement=replacement, inclusion=inclusion)


@pytest.mark.parametrize("replacement", [True, False])
def test_the_compiled_reference(replacement: bool) -> None:
    with use_backend("reference"):
        check_compiled("weighted", replacement=replacement)


@pytest.mark.parametrize("kind", KINDS)
def test_operators_pass_opcheck(native: None, kind: str) -> None:
    ops = torch.ops.sampled_softmax
    tries = torch.tensor(12.5, dtype=torch.float64)
    proposal = make_sampler(kind, 50)._proposal()
    for method, t in ((0, None), (1, tries), (1, None), (2, tries)):
        torch.library.opcheck(ops.sample.default, (key(1), TARGET, *proposal, 10, method, t))
    for t in (None, tries):
        torch.library.opcheck(ops.log_counts.default, (TARGET, *proposal, 10, t))
    torch.library.opcheck(ops.build_alias_table.default, (torch.full((5,), 0.2).double(),))


def test_operators_refuse_what_would_read_out_of_bounds(native: None) -> None:
    ops = torch.ops.sampled_softmax
    fifty, none = proposals.uniform(50), proposals.uniform(0)
    for arguments in (
        (key(1)[:1], TARGET, *fifty, 10, 0, None),
        (key(1).int(), TARGET, *fifty, 10, 0, None),
        (key(1), TARGET.float(), *fifty, 10, 0, None),
        (key(1), TARGET.t(), *fifty, 10, 0, None),
        (key(1), TARGET, *none, 10, 0, None),
        (key(1), TARGET, *fifty, -1, 0, None),
        (key(1), TARGET, *fifty, 51, 1, None),
        (key(1), TARGET, *fifty, 51, 2, None),
        (key(1), TARGET, *fifty, 10, 1, torch.ones(1)),
        (key(1), TARGET, 3, *fifty[1:], 10, 0, None),
    ):
        with pytest.raises(RuntimeError, match="must"):
            ops.sample(*arguments)
    with pytest.raises(RuntimeError, match="needs table and probability_bits"):
        ops.log_counts(TARGET, 2, *fifty[1:], 10, None)
    for exclude, keep_ids in ((TARGET, True), (None, False)):
        with pytest.raises(RuntimeError, match="are for draws of single rows"):
            ops.sample(key(1), TARGET, *fifty, 10, 0, None, exclude, False, keep_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_strided_targets(either: str, kind: str) -> None:
    sampler = make_sampler(kind, 100)
    assert sampler.sample(TARGET[:0], 5).target_log_expected_count.shape == (0, 2)
    assert sampler.sample(torch.tensor(4), 5).target_log_expected_count.shape == ()
    assert_same(sample_of(sampler, TARGET.t()), sample_of(sampler, TARGET.t().contiguous()))
    assert sampler.log_prob(TARGET.t()).shape == (2, 2)


def sample_of(sampler: ssc.Sampler, target: torch.Tensor) -> ssc.Samples:
    torch.manual_seed(0)
    return sampler.sample(target, 5)


# --- errors ---------------------------------------------------------------------------------------


def test_bad_arguments_of_sample(either: str) -> None:
    sampler = ssc.LogUniformSampler(10)
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, r"num_samples must be at least 1, got 0", lambda: sampler.sample(TARGET, 0)),
        (TypeError, r"num_samples must be an int, got float", lambda: sampler.sample(TARGET, 3.0)),
        (TypeError, r"num_samples must be an int, got bool", lambda: sampler.sample(TARGET, True)),
        (
            ValueError,
            r"num_samples must be at most 10, .* without replacement, got 11",
            lambda: sampler.sample(TARGET, 11, replacement=False),
        ),
        (
            ValueError,
            r"inclusion must be one of expected, observed, estimated, got 'mean'",
            lambda: sampler.sample(TARGET, 3, inclusion="mean"),
        ),
        (
            TypeError,
            r"target must be int64, got torch.float32",
            lambda: sampler.sample(TARGET.float(), 3),
        ),
        (TypeError, r"target must be a Tensor, got list", lambda: sampler.sample([1], 3)),
        (
            IndexError,
            r"ids must be in \[0, num_classes=10\), got 41",
            lambda: sampler.log_prob(TARGET),
        ),
        (IndexError, r"got -1", lambda: sampler.log_prob(torch.tensor([-1]))),
        (
            ValueError,
            r"inclusion='observed' needs a draw",
            lambda: sampler.log_expected_count(
                torch.tensor([1]), 3, replacement=False, inclusion="observed"
            ),
        ),
        (ValueError, r"key must be \[2\], got \[3\]", lambda: sampler.draw(torch.arange(3), 3)),
    ]
    for error, message, call in cases:
        state = torch.get_rng_state()
        with pytest.raises(error, match=message):
            call()
        assert torch.equal(state, torch.get_rng_state())  # refused before anything was drawn


@pytest.mark.parametrize(
    ("error", "message", "weights"),
    [
        (
            ValueError,
            r"must be finite and not negative, got -2.0 at \[1\]",
            torch.tensor([1.0, -2.0]),
        ),
        (
            ValueError,
            r"must be finite and not negative, got nan at \[0\]",
            torch.tensor([torch.nan]),
        ),
        (ValueError, r"must be finite and not negative, got inf", torch.tensor([1.0, torch.inf])),
        (ValueError, r"must have a positive sum, got 3 zeros", torch.zeros(3)),
        (ValueError, r"must be \[C\], C >= 1, got \[0\]", torch.ones(0)),
        (ValueError, r"must be \[C\], C >= 1, got \[1, 3\]", torch.ones(1, 3)),
        (TypeError, r"must be a Tensor, got list", [1.0, 2.0]),
        (
            TypeError,
            r"must be real numbers, got torch.complex64",
            torch.ones(3, dtype=torch.cfloat),
        ),
    ],
)
def test_bad_weights(either: str, error: type[Exception], message: str, weights: Any) -> None:
    with pytest.raises(error, match=message):
        ssc.WeightedSampler(weights)
    sampler = ssc.WeightedSampler(torch.ones(3))
    before = {name: tensor.clone() for name, tensor in sampler.state_dict().items()}
    with pytest.raises(error, match=message):
        sampler.update(weights)
    for name, tensor in sampler.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_bad_numbers_of_classes() -> None:
    for make in (ssc.UniformSampler, ssc.LogUniformSampler):
        for number in (0, -3):
            with pytest.raises(ValueError, match=f"num_classes must be in .* got {number}"):
                make(number)
        with pytest.raises(TypeError, match="num_classes must be an int, got float"):
            make(3.5)
    with pytest.raises(ValueError, match="got 4503599627370496"):
        ssc.LogUniformSampler(2**52)
    with pytest.raises(ValueError, match=r"must be \[C=3\], got \[4\]"):
        ssc.WeightedSampler(torch.ones(3)).update(torch.ones(4))
    with pytest.raises(ValueError, match="power must be a finite number, got nan"):
        ssc.WeightedSampler(torch.ones(3), float("nan"))


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (
            lambda no: ssc.UniformSampler(9).sample(torch.arange(3), 4, replacement=no),
            "replacement",
        ),
        (lambda no: ssc.UniformSampler(9).sample(torch.arange(3), 4, per_row=no), "per_row"),
        (lambda no: ssc.InBatchSampler().sample(torch.arange(3), 4, replacement=no), "replacement"),
        (lambda no: ssc.StreamingSampler(9, update_on_sample=no), "update_on_sample"),
    ],
)
def test_a_word_is_no_bool(make: Callable[[Any], object], option: str) -> None:
    """A word would be true, whatever it says."""
    with pytest.raises(TypeError, match=f"{option} must be a bool, got str"):
        make("no")

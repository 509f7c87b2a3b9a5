"""CNTK's functions: their formulas, their conditions, and their three results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import sampled_softmax_cuda as ssc
from helpers.backends import use_backend

cntk = ssc.cntk
C, D, S = 60, 7, 25


def by_hand(
    h: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    ids: Any,
    n: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z, cross entropy and error in float64 from the samples drawn: hits are kept."""
    z = h.double() @ weight.double().T + bias.double().reshape(-1)
    corrected = z - n.double().log()
    z_target = corrected.gather(1, target[:, None])
    cross_entropy = torch.cat((z_target, corrected[:, ids]), 1).logsumexp(1) - z_target[:, 0]
    return z, cross_entropy, (z_target[:, 0] < corrected[:, ids].amax(1)).double()


@pytest.mark.parametrize("allow_duplicates", [True, False])
@pytest.mark.parametrize("row_vector", [True, False])
def test_the_three_results(device: str, row_vector: bool, allow_duplicates: bool) -> None:
    weights = 100 * torch.rand(C) + 1
    loss_fn = cntk.CrossEntropyWithSampledSoftmax(
        C, D, S, weights[None] if row_vector else weights, allow_duplicates
    )
    torch.nn.init.normal_(loss_fn.bias)
    h, target = torch.randn(30, D, requires_grad=True), torch.randint(C, (30,))
    torch.manual_seed(4)
    z, cross_entropy, error = loss_fn(h, target)
    torch.manual_seed(4)
    ids = loss_fn.sampler.sample(target, S, replacement=allow_duplicates).ids
    assert allow_duplicates or ids.unique().numel() == S
    n = cntk.random_sample_inclusion_frequency(weights, S, allow_duplicates)
    expected = by_hand(h, target, loss_fn.weight, loss_fn.bias, ids, n)
    torch.testing.assert_close(z, expected[0].float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cross_entropy, expected[1].float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(error.double(), expected[2])

    leaves = [h, loss_fn.weight, loss_fn.bias]
    factors = torch.randn(30, C)
    ours = torch.autograd.grad(cross_entropy.mean() + (z * factors).sum(), leaves)
    theirs = torch.autograd.grad(expected[1].mean() + (expected[0] * factors).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_sampled_target_counts_twice(device: str) -> None:
    """Where the only class drawn is the target, the loss is log 2 and nothing beats the target."""
    weights = torch.tensor([0.0, 5.0, 0.0])
    _, cross_entropy, error = cntk.cross_entropy_with_sampled_softmax_and_embedding(
        torch.randn(2, D),
        torch.tensor([1, 1]),
        3,
        D,
        1,
        weights,
        weight=torch.randn(3, D),
        bias=torch.randn(3, 1),
    )
    torch.testing.assert_close(cross_entropy, torch.full((2,), 2.0).log())
    assert error.tolist() == [0.0, 0.0]


def test_initialisation_is_cntks() -> None:
    loss_fn = cntk.CrossEntropyWithSampledSoftmax(1000, 50, S, torch.ones(1000))
    assert loss_fn.weight.shape == (1000, 50)
    assert loss_fn.bias.shape == (1000, 1)
    limit = (6 / 1050) ** 0.5
    largest = float(loss_fn.weight.detach().abs().max())
    assert 0.99 * limit < largest <= limit
    assert torch.equal(loss_fn.bias.detach(), torch.zeros(1000, 1))


@pytest.mark.parametrize("layout", ["dense", "dense float64", "coo", "csr"])
def test_one_hot_targets(device: str, layout: str) -> None:
    loss_fn = cntk.CrossEntropyWithSampledSoftmax(C, D, S, torch.ones(C))
    h, target = torch.randn(9, D), torch.randint(C, (9,))
    one_hot = F.one_hot(target, C).float()
    vectors = {
        "dense": one_hot,
        "dense float64": one_hot.double(),
        "coo": one_hot.to_sparse(),
        "csr": one_hot.to_sparse_csr(),
    }
    torch.manual_seed(4)
    expected = loss_fn(h, target)
    torch.manual_seed(4)
    for a, b in zip(loss_fn(h, vectors[layout]), expected, strict=True):
        assert torch.equal(a, b)


def test_one_hot_targets_of_any_shape(either: str) -> None:
    loss_fn = cntk.CrossEntropyWithSampledSoftmax(C, D, S, torch.ones(C))
    h, target = torch.randn(2, 3, D), torch.randint(C, (2, 3))
    one_hot = F.one_hot(target, C)
    for vector in (one_hot, one_hot.to_sparse()):
        z, cross_entropy, error = loss_fn(h, vector)
        assert z.shape == (2, 3, C)
        assert cross_entropy.shape == error.shape == (2, 3)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("fault", ["two", "none", "half", "negative"])
def test_targets_that_are_not_one_hot(fault: str, sparse: bool) -> None:
    vector = F.one_hot(torch.tensor([1, 4, 2]), C).float()
    row = {"two": [1.0, 1.0], "none": [0.0, 0.0], "half": [0.5, 0.0], "negative": [1.0, -1.0]}
    vector[1] = 0
    vector[1, :2] = torch.tensor(row[fault])
    loss_fn = cntk.CrossEntropyWithSampledSoftmax(C, D, S, torch.ones(C))
    with pytest.raises(ValueError, match="target_vector must be one-hot"):
        loss_fn(torch.randn(3, D), vector.to_sparse() if sparse else vector)


def test_inclusion_frequencies() -> None:
    weights = torch.tensor([[6.0, 3.0, 0.0, 1.0]])
    n = cntk.random_sample_inclusion_frequency(weights, 5, True)
    torch.testing.assert_close(n, torch.tensor([[3.0, 1.5, 0.0, 0.5]]))
    n = cntk.random_sample_inclusion_frequency(weights, 2, False)
    assert n.shape == weights.shape
    # -expm1(t log1p(-q)) for the t of the most likely class gives all others.
    t = torch.log1p(-n[0, 0].double()) / torch.log1p(torch.tensor(-0.6, dtype=torch.float64))
    expected = -torch.expm1(t * torch.log1p(-weights[0].double() / 10))
    torch.testing.assert_close(n[0].double(), expected, rtol=1e-5, atol=1e-6)
    assert float(n.sum()) == pytest.approx(2, abs=0.5)


def test_samples() -> None:
    weights = torch.tensor([[2.0, 0.0, 1.0, 1.0]])
    ids = cntk.random_sample(weights, 4000, True)
    assert ids.shape == (4000,)
    assert ids.dtype == torch.int64
    counts = ids.bincount(minlength=4)
    assert counts[1] == 0
    assert abs(int(counts[0]) - 2000) < 200
    assert sorted(cntk.random_sample(weights, 3, False).tolist()) == [0, 2, 3]
    g = torch.Generator().manual_seed(5)
    first = cntk.random_sample(weights, 9, True, generator=g)
    assert torch.equal(first, cntk.random_sample(weights, 9, True, generator=g.manual_seed(5)))


FUNCTIONS: dict[str, Any] = {
    "random_sample": cntk.random_sample,
    "random_sample_inclusion_frequency": cntk.random_sample_inclusion_frequency,
    "CrossEntropyWithSampledSoftmax": lambda weights, samples, duplicates: (
        cntk.CrossEntropyWithSampledSoftmax(3, D, samples, weights, duplicates)
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("weights", "num_samples", "duplicates", "kind", "message"),
    [
        ([1.0, 2.0, 3.0], 0, True, ValueError, "num_samples must be at least 1, got 0"),
        ([1.0, -2.0, 3.0], 2, True, ValueError, r"weights must not be negative, got -2.0 at \[1\]"),
        ([1.0, 0.0, 3.0], 3, False, ValueError, "num_samples must be at most 2.*got 3"),
        ([1.0, 2.0, 3.0], 1.5, True, TypeError, "num_samples must be an int, got float"),
        ([[1.0, 2.0, 3.0]] * 2, 1, True, ValueError, r"must be \[C\] or \[1, C\], got \[2, 3\]"),
        ([1, 2, 3], 1, True, TypeError, "weights must be float32.*got torch.int64"),
    ],
)
def test_conditions(
    name: str, weights: Any, num_samples: Any, duplicates: bool, kind: Any, message: str
) -> None:
    with pytest.raises(kind, match=f"^{name}: .*{message}"):
        FUNCTIONS[name](torch.tensor(weights), num_samples, duplicates)


def test_as_many_samples_as_positive_weights_is_accepted(either: str) -> None:
    """CNTK itself refuses this; there is nothing wrong with it."""
    weights = torch.tensor([1.0, 0.0, 3.0])
    assert sorted(cntk.random_sample(weights, 2, False).tolist()) == [0, 2]
    n = cntk.random_sample_inclusion_frequency(weights, 2, False)
    assert n.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(C, D + 1)}, r"weight must be \[num_classes=60, hidden_dim=7\]"),
        ({"bias": torch.zeros(1, C)}, r"bias must be \[num_classes=60, 1\], got \[1, 60\]"),
        ({"sampling_weights": torch.ones(C + 1)}, "sampling_weights must hold num_classes=60"),
        ({"hidden_vector": torch.zeros(4, D + 2)}, r"weight must be \[C, D=9\]"),
        ({"target_vector": torch.zeros(4, C - 1)}, r"class ids \[4\] or one-hot \[4, 60\]"),
    ],
    ids=str,
)
def test_function_arguments(changes: dict[str, Any], message: str) -> None:
    arguments = {
        "hidden_vector": torch.zeros(4, D),
        "target_vector": torch.zeros(4, dtype=torch.int64),
        "num_classes": C,
        "hidden_dim": D,
        "num_samples": S,
        "sampling_weights": torch.ones(C),
        "weight": torch.zeros(C, D),
        "bias": torch.zeros(C, 1),
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        cntk.cross_entropy_with_sampled_softmax_and_embedding(**arguments)


def test_target_out_of_range(either: str) -> None:
    loss_fn = cntk.CrossEntropyWithSampledSoftmax(C, D, S, torch.ones(C))
    for bad in (C, -1, -100):
        with pytest.raises(IndexError, match=rf"target_vector must be in .* got {bad} at \[1\]"):
            loss_fn(torch.randn(2, D), torch.tensor([0, bad]))


def test_an_empty_batch(either: str) -> None:
    loss_fn = cntk.CrossEntropyWithSampledSoftmax(C, D, S, torch.ones(C))
    z, cross_entropy, error = loss_fn(torch.randn(0, D), torch.zeros(0, dtype=torch.int64))
    assert z.shape == (0, C)
    assert cross_entropy.shape == error.shape == (0,)


def test_it_learns_with_either_kind_of_draw(either: str) -> None:
    for allow_duplicates in (True, False):
        centres = torch.randn(C, D)
        loss_fn = cntk.CrossEntropyWithSampledSoftmax(C, D, S, torch.ones(C), allow_duplicates)
        optimizer = torch.optim.Adam(loss_fn.parameters(), lr=0.1)
        target = torch.randint(C, (128,))
        h = 3 * centres[target]
        for _ in range(60):
            optimizer.zero_grad()
            z, cross_entropy, _ = loss_fn(h, target)
            cross_entropy.mean().backward()
            optimizer.step()
        assert float((z.argmax(1) == target).float().mean()) > 0.9


def test_repr() -> None:
    text = repr(cntk.CrossEntropyWithSampledSoftmax(C, D, S, torch.ones(C), False))
    assert "num_classes=60, hidden_dim=7, num_samples=25, allow_duplicates=False" in text


@pytest.mark.parametrize(
    ("weights", "num_samples", "allow_duplicates", "expected", "tolerance"),
    [
        ([42.0] * 4, 1, True, [1 / 4] * 4, 1e-4),
        ([42.0] * 4, 13, True, [13 / 4] * 4, 1e-4),
        ([1.0, 2.0, 3.0], 42, True, [7.0, 14.0, 21.0], 1e-4),
        ([100.0] * 100 + [10.0] * 100 + [0.1] * 100, 200, False, [1.0] * 200 + [0.0] * 100, 0.1),
    ],
    ids=str,
)
def test_inclusion_frequencies_of_cntks_own_tests(
    either: str,
    weights: list[float],
    num_samples: int,
    allow_duplicates: bool,
    expected: list[float],
    tolerance: float,
) -> None:
    """The cases, with their tolerances, of CNTK 2.7's ops/tests/random_sample_test.py."""
    n = cntk.random_sample_inclusion_frequency(torch.tensor(weights), num_samples, allow_duplicates)
    torch.testing.assert_close(n, torch.tensor(expected), rtol=0, atol=tolerance)


def test_samples_of_cntks_own_tests(either: str) -> None:
    """The same file's: relative frequencies of ten draws of 1000, and a draw of all that can be."""
    weights = torch.tensor([1.0, 3.0, 5.0, 1.0])
    drawn = torch.cat([cntk.random_sample(weights, 1000, True) for _ in range(10)])
    frequency = drawn.bincount(minlength=4) / 10_000
    torch.testing.assert_close(frequency, weights / 10, rtol=0, atol=0.03)
    ids = cntk.random_sample(torch.tensor([1.0, 3.0, 50.0, 1.0, 0.0]), 4, False)
    assert sorted(ids.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("wrong", "nan_rows"),
    [
        ([(1, 1, 0.5)], [1]),
        ([(1, 1, 0.0), (0, 2, 1.0)], [0, 1]),  # as many ones as rows, two in the first
        ([(2, 7, 1.0)], [2]),
    ],
)
def test_a_row_that_is_not_one_hot_is_nan_where_nobody_may_look(
    monkeypatch: pytest.MonkeyPatch,
    wrong: list[tuple[int, int, float]],
    nan_rows: list[int],
    sparse: bool,
) -> None:
    """As on CUDA, where a check would wait: other rows keep their class, or are NaN as well."""
    monkeypatch.setattr(cntk._checks, "may_read", lambda values: False)
    loss_fn = cntk.CrossEntropyWithSampledSoftmax(C, D, S, torch.ones(C))
    h, target = torch.randn(4, D), torch.tensor([3, 1, 4, 1])
    one_hot = F.one_hot(target, C).float()
    results = []
    with use_backend("reference"):
        for changes in ([], wrong):
            for row, k, value in changes:
                one_hot[row, k] = value
            torch.manual_seed(1)
            results.append(loss_fn(h, one_hot.to_sparse() if sparse else one_hot)[1])
    right, loss = results
    torch.manual_seed(1)
    torch.testing.assert_close(right, loss_fn(h, target).cross_entropy_on_samples)
    nan = loss.isnan()
    assert nan[nan_rows].all()
    assert torch.equal(loss[~nan], right[~nan])
    assert sparse or nan.nonzero()[:, 0].tolist() == nan_rows

"""The number of draws that operators take as a tensor, in the host's memory and in the device's.

The host gives its value to the kernels, the device a pointer, and each way has its own code. On a
GPU a tensor lies here or there; in tests/simt_ops SSC_SIMT_NUMBERS says which is played.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.backends import use_backend
from helpers.samplers import KINDS, key, make_sampler
from sampled_softmax_cuda.ops import sample as ops
from sampled_softmax_cuda.proposals import Method

C, S = 700, 40
TARGET = torch.tensor([0, 3, 699, -100, 700, 3])


@pytest.fixture(params=["host", "device"], autouse=True)
def numbers(request: pytest.FixtureRequest, simt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSC_SIMT_NUMBERS", request.param)


def number(value: float | None) -> Tensor | None:
    return None if value is None else torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tries", [None, 40.0, 321.5, float("inf")])
def test_log_counts(kind: str, tries: float | None) -> None:
    proposal = make_sampler(kind, C)._proposal()
    ids = torch.cat((torch.arange(C), torch.tensor([-1, C, -(2**63)])))
    got = ops.log_counts(proposal, ids, S, number(tries))
    with use_backend("reference"):
        want = ops.log_counts(proposal, ids, S, number(tries))
    assert torch.equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [Method.DISTINCT, Method.RACE])
@pytest.mark.parametrize("tries", [None, 55.25])  # None: the draws that it took
def test_draws_without_replacement(kind: str, method: Method, tries: float | None) -> None:
    proposal = make_sampler(kind, C)._proposal()
    got = ops.sample(proposal, key(7, 3), TARGET, S, method, number(tries))
    with use_backend("reference"):
        want = ops.sample(proposal, key(7, 3), TARGET, S, method, number(tries))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert got[2].isfinite().all() and (got[2] < 0).all(), "log n of distinct classes"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [Method.DISTINCT, Method.RACE])
@pytest.mark.parametrize("tries", [None, 55.25])
def test_draws_of_rows(kind: str, method: Method, tries: float | None) -> None:
    sampler = make_sampler(kind, C)
    arguments = sampler._proposal()
    exclude = torch.tensor([[1, 2], [0, -1], [C, 5]])
    rest = (key(7, 3), TARGET.view(3, 2), S, method, number(tries), exclude, True)
    got = ops.sample(arguments, *rest)
    with use_backend("reference"):
        want = ops.sample(arguments, *rest)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b) if a.dtype == torch.int64 else torch.allclose(a, b, atol=1e-6)

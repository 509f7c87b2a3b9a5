"""Kernels that are wrong on a device are found at their first use, and the reference serves.

The device is one of the executors of the CUDA kernels (csrc/simt, PTX), whose operators get a
fault each: one number off, numbers not written, a failed launch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import sampled_softmax_cuda as ssc
from helpers.backends import use_backend
from helpers.simt_backend import operators_of, use_simt
from sampled_softmax_cuda.exact import exact_cross_entropy
from sampled_softmax_cuda.ops import self_check, trust

B, D, C, S = 20, 8, 60, 30
FLOAT = torch.float32


def one_off(results: Any) -> Any:
    """The last number of the first result with numbers is another one."""
    first = next(x for x in as_tuple(results) if x.numel() > 0)
    last = first.reshape(-1)[-1:]
    last += 1 if first.dtype == torch.int64 else 0.5 * first.abs().max().clamp(min=1.0)
    return results


def unwritten(results: Any) -> Any:
    """The last result with numbers has NaN in its last row, or no id."""
    last = [x for x in as_tuple(results) if x.numel() > 0][-1]
    last[-1:] = torch.nan if last.is_floating_point() else -1
    return results


def failed(results: Any) -> Any:
    raise RuntimeError("CUDA error: an illegal instruction was encountered\nmore lines")


def as_tuple(results: Any) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def step_off(arguments: tuple[Any, ...]) -> None:
    arguments[0][-1] += 1.0


FAULTS = [one_off, unwritten, failed]
# Every operator that the check runs, and what is off if it is.
RETURNING = {
    "sample": "draws",
    "log_counts": "draws",
    "loss_rows": "loss",
    "loss_and_grads": "loss",
    "negatives_rows": "negatives",
    "negatives_grads": "negatives",
    "exact_loss_rows": "exact",
    "logits": "exact",
}


def with_fault(executor: str, name: str, fault: Callable[[Any], Any]) -> dict[str, Any]:
    right = operators_of(executor)[name]
    return {name: lambda *arguments: fault(right(*arguments))}


@contextmanager
def warned(times: int) -> Iterator[list[str]]:
    """The texts of the warnings inside, of which there are as many."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(w.message) for w in caught if "failed their check" in str(w.message)]
    assert len(texts) == times, texts


def results_of(family: str) -> list[Tensor]:
    """Results of a family in float32, by the public functions."""
    generator = torch.Generator().manual_seed(5)
    h = torch.randn(B, D, generator=generator, requires_grad=True)
    weight = nn.Parameter(torch.randn(C, D, generator=generator))
    target, ids = torch.randint(C, (B,), generator=generator), torch.arange(S)
    if family == "draws":
        sampler = ssc.LogUniformSampler(C)
        samples = sampler.sample(target, S, generator=generator)
        return [samples.ids, sampler.log_expected_count(target, S)]
    if family == "exact":
        return [exact_cross_entropy(h, weight, target).detach(), ssc.logits(h, weight).detach()]
    if family == "updates":
        weight.grad = h.detach().repeat(C // B, 1)
        ssc.optim.Adam([weight], lr=0.1).step()
        return [weight.detach()]
    results = []
    plain: list[dict[str, Any]] = [{}, {"reduction": "none"}]
    for options in plain if family == "loss" else [{"objective": ssc.NCE(), "softcap": 4.0}]:
        loss = ssc.sampled_softmax_loss(h, weight, target, ssc.Samples(ids), **options)
        results += [loss.detach(), *torch.autograd.grad(loss.sum(), (h, weight))]
    return results


@pytest.fixture
def executor(simt: str) -> str:
    """Its operators are there; the fixture's own have no faults."""
    return simt


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", RETURNING)
def test_a_fault_is_caught_and_served_right(
    executor: str, name: str, fault: Callable[[Any], Any]
) -> None:
    family = RETURNING[name]
    with use_backend("reference"):
        theirs = results_of(family)
    with use_simt(executor, "1", **with_fault(executor, name, fault)):
        with warned(1) as texts:
            ours = results_of(family)
        with warned(0):
            again = results_of(family)
    for a, b, c in zip(ours, again, theirs, strict=True):
        torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(b, c, atol=1e-5, rtol=1e-5)
    kernels = family + ("" if family == "draws" else " in float32")
    assert f"the kernels of {kernels} on cpu failed" in texts[0]
    if fault is failed:
        assert "RuntimeError: CUDA error: an illegal instruction was encountered;" in texts[0]
    assert "--self-check" in texts[0]


def test_a_fault_of_updates_is_caught_and_served_right(executor: str) -> None:
    right = operators_of(executor)["row_update"]

    def off(*arguments: Any) -> None:
        right(*arguments)
        step_off(arguments)

    with use_backend("reference"):
        (theirs,) = results_of("updates")
    with use_simt(executor, "1", row_update=off), warned(1) as texts:
        (ours,) = results_of("updates")
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert "updates in float32 on cpu" in texts[0]


def test_right_kernels_serve_without_a_word(executor: str) -> None:
    calls = []
    right = operators_of(executor)["loss_rows"]

    def counted(*arguments: Any) -> Any:
        calls.append(arguments[0].shape)
        return right(*arguments)

    with use_simt(executor, "1", loss_rows=counted), warned(0):
        results_of("loss")
        checks = calls.count(torch.Size([self_check.B, self_check.D]))
        results_of("loss")
    assert checks == 1  # and none the second time
    assert calls.count(torch.Size([self_check.B, self_check.D])) == checks
    assert calls.count(torch.Size([B, D])) == 2  # rows that are not reduced


@pytest.mark.parametrize("dtype", self_check.DTYPES)
def test_kernels_of_every_family_pass(executor: str, dtype: torch.dtype) -> None:
    with use_simt(executor):
        for family in self_check.FAMILIES:
            if family != "draws":
                finding = self_check.examine(family, torch.device("cpu"), dtype)
                assert finding.message == ""
                assert finding.error < 0.5  # the tolerance has room for another device
        assert self_check.examine("draws", torch.device("cpu"), torch.int64).message == ""


def test_a_fault_in_one_dtype_leaves_the_others(executor: str) -> None:
    right = operators_of(executor)["loss_rows"]

    def off(*arguments: Any) -> Any:
        results = right(*arguments)
        return one_off(results) if arguments[1].dtype == torch.bfloat16 else results

    device = torch.device("cpu")
    with use_simt(executor, "1", loss_rows=off):
        for dtype in self_check.DTYPES:
            message, _, _ = trust.run_check("loss", device, dtype)
            assert bool(message) == (dtype == torch.bfloat16)


def test_strict_is_an_error_each_time(executor: str) -> None:
    with use_simt(executor, "strict", **with_fault(executor, "sample", failed)):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"draws on cpu failed .*SSC_SELF_CHECK=1"):
                results_of("draws")


def test_switched_off_it_does_not_look(executor: str) -> None:
    with use_simt(executor, "0", **with_fault(executor, "logits", one_off)), warned(0):
        wrong = results_of("exact")
    with use_simt(executor, "0"):
        assert not torch.equal(wrong[1], results_of("exact")[1])


def test_warnings_that_are_errors_do_not_undo_the_verdict(executor: str) -> None:
    with use_simt(executor, "1", **with_fault(executor, "sample", failed)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeWarning, match="failed their check"):
                results_of("draws")
        with warned(0):
            results_of("draws")


def test_the_caller_is_left_as_it_was(executor: str) -> None:
    """Under modes that would change a check's numbers, and with the caller's random numbers."""
    h, weight, target = torch.randn(B, D), torch.randn(C, D), torch.randint(C, (B,))
    with use_simt(executor, "1"), warned(0):
        state = torch.get_rng_state()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            exact_cross_entropy(h, weight, target)
        with torch.device("meta"), torch.no_grad():
            ssc.sampled_softmax_loss(h, weight, target, ssc.Samples(target))

        def fail(x: Tensor) -> Tensor:
            raise AssertionError("a hook of the caller saw the check")

        hooks = torch.autograd.graph.saved_tensors_hooks(fail, fail)
        with hooks, torch.no_grad():
            samples = ssc.Samples(target)
            ssc.sampled_softmax_loss(h, weight, target, samples, objective=ssc.NCE())
        assert torch.equal(torch.get_rng_state(), state)


def test_graphs_fakes_and_meta_tensors_run_no_check(
    executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a check has run")

    monkeypatch.setattr(trust, "run_check", refuse)
    target = torch.arange(4)
    with use_simt(executor, "1"):
        with FakeTensorMode() as mode:
            h, weight = torch.empty(4, D), torch.empty(C, D)
            ssc.sampled_softmax_loss(h, weight, mode.from_tensor(target), ssc.Samples(
                mode.from_tensor(target)))  # fmt: skip
        with torch.device("meta"):
            h, weight, some = torch.empty(4, D), torch.empty(C, D), torch.arange(4)
            exact_cross_entropy(h, weight, some)
        with pytest.raises(AssertionError, match="a check has run"):
            ssc.logits(torch.ones(4, D), torch.ones(C, D))
        fn = torch.compile(ssc.exact.exact_cross_entropy, backend="eager", fullgraph=True)
        fn(torch.randn(4, D), torch.randn(C, D), target)


def test_a_graph_takes_what_is_known_and_is_traced_again(executor: str) -> None:
    fault = with_fault(executor, "exact_loss_rows", one_off)
    h, weight, target = torch.randn(4, D), torch.randn(C, D), torch.arange(4)
    right = nn.functional.cross_entropy(h @ weight.T, target)
    torch.compiler.reset()
    fn = torch.compile(exact_cross_entropy, backend="eager", fullgraph=True)
    with use_simt(executor, "1", **fault):
        assert not torch.allclose(fn(h, weight, target), right)  # no check in a graph
        with warned(1):
            exact_cross_entropy(h, weight, target)
        torch.testing.assert_close(fn(h, weight, target), right)
    torch.compiler.reset()


def test_many_threads_check_once(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    run_check = trust.run_check
    monkeypatch.setattr(trust, "run_check", lambda *key: runs.append(key) or run_check(*key))
    x = torch.zeros(1)
    with use_simt(executor, "1"), ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda _: trust.trusted("logits", x, FLOAT), range(32)))
    assert all(verdicts)
    assert len(runs) == 1


def test_the_host_has_little_to_do(executor: str) -> None:
    """All families of a dtype may take 100 ms in a process, of which kernels need some.

    Calls are counted, since seconds are a machine's own: the numbers, the reference and the
    comparison take some 9,000 of functions in Python and in C (docs/cuda.md has the time).
    """
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    with use_simt(executor, "1"), warned(0):
        x = torch.zeros(1)
        threading.setprofile(count)  # of threads that begin: the check has its own
        try:
            assert all(trust.trusted(name, x, FLOAT) for name in trust.FAMILY_OF)
        finally:
            threading.setprofile(None)
    assert 1_000 < calls < 15_000


def test_the_check_keeps_to_one_thread_and_leaves_those_of_others(
    executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = []

    def look(*_: Any) -> self_check.Finding:
        numbers.append(torch.get_num_threads())
        return self_check.Finding(0.0)

    monkeypatch.setattr(self_check, "examine", look)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with use_simt(executor, "1"):
            trust.trusted("logits", torch.zeros(1), FLOAT)
        trust.run_check("exact", torch.device("cpu"), FLOAT)
        assert numbers == [1, 3]
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_every_operator_that_python_asks_for_belongs_to_a_family() -> None:
    assert set(trust.FAMILY_OF.values()) == set(self_check.FAMILIES)


def test_a_wrong_word_is_refused() -> None:
    refused = pytest.raises(ValueError, match="must be one of 1, 0, strict, got 'yes'")
    with refused, trust.use_self_check("yes"):
        pass
    done = subprocess.run(
        [sys.executable, "-c", "import sampled_softmax_cuda"],
        env={**os.environ, "SSC_SELF_CHECK": "yes"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "SSC_SELF_CHECK must be one of 1, 0, strict, got 'yes'" in done.stderr

"""Bad input: the named error, with the values in the message, and every tensor as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.problem import make_problem
from sampled_softmax_cuda import _checks, _rules, exact

B, D, C, S = 32, 768, 1000, 16


def good() -> dict[str, Any]:
    target = torch.arange(B)
    return {
        "input": torch.randn(B, D, requires_grad=True),
        "weight": torch.randn(C, D, requires_grad=True),
        "target": target,
        "samples": ssc.Samples(torch.arange(S), torch.zeros(S), torch.zeros(B)),
        "bias": torch.randn(C, requires_grad=True),
    }


def samples(**changes: Any) -> ssc.Samples:
    return replace(ssc.Samples(torch.arange(S), torch.zeros(S), torch.zeros(B)), **changes)


def with_value(size: int, index: int, value: int) -> torch.Tensor:
    ids = torch.arange(size)
    ids[index] = value
    return ids


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "weight width": (
        {"weight": torch.randn(50257, 512)},
        ValueError,
        r"weight must be \[C, D=768\] to match input \[32, 768\], got \[50257, 512\]",
    ),
    "weight dimensions": (
        {"weight": torch.randn(C)},
        ValueError,
        r"weight must be \[C, D=768\] to match input \[32, 768\], got \[1000\]",
    ),
    "no classes": ({"weight": torch.randn(0, D)}, ValueError, r"at least one class"),
    "input without dimensions": ({"input": torch.tensor(1.0)}, ValueError, r"input must be \[\*"),
    "input is a list": ({"input": [[1.0]]}, TypeError, r"input must be a Tensor, got list"),
    "input is int": (
        {"input": torch.ones(B, D, dtype=torch.int64)},
        TypeError,
        r"input must be float32, bfloat16, float16 or float64, got torch.int64",
    ),
    "weight is None": ({"weight": None}, TypeError, r"weight must be a Tensor, got NoneType"),
    "float64 with float32": (
        {"weight": torch.randn(C, D, dtype=torch.float64)},
        TypeError,
        r"input is torch.float32, weight is torch.float64",
    ),
    "bias shape": (
        {"bias": torch.randn(999)},
        ValueError,
        r"bias must be \[C=1000\] to match weight \[1000, 768\], got \[999\]",
    ),
    "bias of another kind": (
        {"bias": torch.ones(C, dtype=torch.int32)},
        TypeError,
        r"bias must be float32.*got torch.int32",
    ),
    "target shape": (
        {"target": torch.arange(31)},
        ValueError,
        r"target must be \[32\] or \[32, 'T'\], T >= 1, to match input \[32, 768\], got \[31\]",
    ),
    "no target in a list": (
        {"target": torch.zeros(B, 0, dtype=torch.int64)},
        ValueError,
        r"target must be .*T >= 1.*got \[32, 0\]",
    ),
    "target dtype": (
        {"target": torch.arange(B, dtype=torch.int32)},
        TypeError,
        r"target must be int64, got torch.int32",
    ),
    "target too large": (
        {"target": with_value(B, 7, C)},
        IndexError,
        r"target must be in \[0, C=1000\) or ignore_index=-100, got 1000 at \[7\]",
    ),
    "target negative": (
        {"target": with_value(B, 3, -1)},
        IndexError,
        r"target must be in .* got -1 at \[3\]",
    ),
    "target is not the ignore_index": (
        {"target": with_value(B, 3, -100), "ignore_index": -1},
        IndexError,
        r"ignore_index=-1, got -100 at \[3\]",
    ),
    "samples is a tensor": (
        {"samples": torch.arange(S)},
        TypeError,
        r"samples must be a Samples\(ids, .*got \[16\]",
    ),
    "ids dtype": (
        {"samples": samples(ids=torch.arange(S, dtype=torch.int32))},
        TypeError,
        r"samples.ids must be int64, got torch.int32",
    ),
    "ids per row": (
        {"samples": samples(ids=torch.zeros(B - 1, S, dtype=torch.int64))},
        ValueError,
        r"samples.ids must be \[S\], shared by all rows, or \[32, 'S'\].*got \[31, 16\]",
    ),
    "no ids": (
        {"samples": ssc.Samples(torch.arange(0))},
        ValueError,
        r"samples.ids must be \[S\] with S >= 1, got \[0\]",
    ),
    "id too large": (
        {"samples": samples(ids=with_value(S, 5, C + 4))},
        IndexError,
        r"samples.ids must be in \[0, C=1000\), got 1004 at \[5\]",
    ),
    "id negative": (
        {"samples": samples(ids=with_value(S, 0, -3))},
        IndexError,
        r"samples.ids must be in \[0, C=1000\), got -3 at \[0\]",
    ),
    "counts shape": (
        {"samples": samples(log_expected_count=torch.zeros(S + 1))},
        ValueError,
        r"samples.log_expected_count must be \[16\] to match samples.ids, got \[17\]",
    ),
    "target counts shape": (
        {"samples": samples(target_log_expected_count=torch.zeros(B - 1))},
        ValueError,
        r"samples.target_log_expected_count must be \[32\] to match target, got \[31\]",
    ),
    "sample_weight shape": (
        {"sample_weight": torch.ones(B, 1)},
        ValueError,
        r"sample_weight must be \[32\] to match input \[32, 768\], got \[32, 1\]",
    ),
    "reduction": (
        {"reduction": "batchmean"},
        ValueError,
        r"reduction must be one of 'none', 'mean', 'sum', got 'batchmean'",
    ),
    "correction": (
        {"correction": True},
        ValueError,
        r"correction must be one of 'both', 'negatives', 'none', got True",
    ),
    "objective": (
        {"objective": "hinge"},
        ValueError,
        r"objective must be one of 'softmax', 'nce', 'negative_sampling', 'gbce' or an Objective,"
        r" got 'hinge'",
    ),
    "objective class": (
        {"objective": ssc.NCE},
        TypeError,
        r"objective must be one of .* got the class NCE: pass NCE\(\)",
    ),
    "objective of another build": (
        {"objective": type("NCE", (), {"__module__": "_sampled_softmax_cuda_cpu_0.objectives"})()},
        TypeError,
        r"an Objective, got the NCE of another build, _sampled_softmax_cuda_cpu_0: both must come",
    ),
    "objective number": ({"objective": 3}, TypeError, r"objective must be one of .* got int"),
    "softcap zero": ({"softcap": 0.0}, ValueError, r"softcap must be positive, or None"),
    "softcap negative": (
        {"softcap": -1.0},
        ValueError,
        r"softcap must be positive, or None for no cap, got -1.0",
    ),
    "softcap text": ({"softcap": "30"}, TypeError, r"softcap must be a float, got str"),
    "angle without cosine": (
        {"objective": ssc.Softmax(angular_margin=0.5)},
        ValueError,
        r"angular_margin does not go with cosine=False: there is no angle",
    ),
    "smoothing of capped logits": (
        {"objective": ssc.Softmax(label_smoothing=0.1), "softcap": 30.0},
        ValueError,
        r"label_smoothing does not go with softcap",
    ),
    "corrected negative sampling": (
        {"objective": "negative_sampling", "correction": "negatives"},
        ValueError,
        r"correction='negatives' does not go with objective=NegativeSampling\(\).*NCE\(\)",
    ),
    "reweighted and uncorrected": (
        {"objective": ssc.Softmax(reweighted=True), "correction": "none"},
        ValueError,
        r"correction='none' does not go with reweighted=True",
    ),
    "z-loss of sigmoids": (
        {"objective": "nce", "z_loss": 1e-4},
        ValueError,
        r"z_loss does not go with objective=NCE\(\): sigmoids have no normaliser",
    ),
    "z-loss negative": ({"z_loss": -1.0}, ValueError, r"z_loss must be in \[0, inf\), got -1.0"),
    "gbce of several targets": (
        {
            "objective": "gbce",
            "target": torch.zeros(B, 2, dtype=torch.int64),
            "samples": samples(target_log_expected_count=None),
        },
        ValueError,
        r"a target \[\*, T\] does not go with objective=GBCE\(\)",
    ),
    "padding_idx": (
        {"padding_idx": C},
        ValueError,
        rf"padding_idx must be in \[-C, C\) with C={C}, or None, got {C}",
    ),
    "padding_idx float": ({"padding_idx": 0.5}, TypeError, r"padding_idx must be an int"),
    "class_weight shape": (
        {"class_weight": torch.ones(C + 1)},
        ValueError,
        rf"class_weight must be \[C={C}\] to match weight .* got \[{C + 1}\]",
    ),
    "class_weight dtype": (
        {"class_weight": torch.ones(C, dtype=torch.int64)},
        TypeError,
        r"class_weight must be float32, .* got torch.int64",
    ),
    "class_weight of several targets": (
        {
            "class_weight": torch.ones(C),
            "target": torch.zeros(B, 2, dtype=torch.int64),
            "samples": samples(target_log_expected_count=None),
        },
        ValueError,
        r"class_weight does not go with a target \[\*, T\].*pass sample_weight",
    ),
    "class_weight and smoothing": (
        {"class_weight": torch.ones(C), "objective": ssc.Softmax(label_smoothing=0.1)},
        ValueError,
        r"class_weight does not go with label_smoothing",
    ),
    "exclude shape": (
        {"exclude": torch.zeros(B, dtype=torch.int64)},
        ValueError,
        r"exclude must be \[32, 'E'\] to match input \[32, 768\], got \[32\]",
    ),
    "exclude dtype": ({"exclude": torch.zeros(B, 1)}, TypeError, r"exclude must be int64"),
    "exclude with hits kept": (
        {"exclude": torch.zeros(B, 1, dtype=torch.int64), "remove_accidental_hits": False},
        ValueError,
        r"exclude does not go with remove_accidental_hits=False",
    ),
    "exclude and smoothing": (
        {
            "exclude": torch.zeros(B, 1, dtype=torch.int64),
            "objective": ssc.Softmax(label_smoothing=0.1),
        },
        ValueError,
        r"label_smoothing does not go with exclude",
    ),
    "cosine of samples per row": (
        {
            "cosine": True,
            "samples": ssc.Samples(torch.zeros(B, S, dtype=torch.int64)),
        },
        ValueError,
        r"cosine does not go with samples per row",
    ),
    "temperature zero": ({"temperature": 0.0}, ValueError, r"temperature must be positive"),
    "temperature nan": ({"temperature": float("nan")}, ValueError, r"temperature must be positive"),
    "temperature tensor": (
        {"temperature": torch.tensor(1.0)},
        TypeError,
        r"temperature must be a float",
    ),
    "ignore_index": ({"ignore_index": None}, TypeError, r"ignore_index must be an int"),
    "device": (
        {"weight": torch.empty(C, D, device="meta")},
        ValueError,
        r"weight must be on the device of input, cpu, got meta",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_loss(either: str, case: str) -> None:
    changes, kind, message = BAD[case]
    arguments = {**good(), **changes}
    tensors = [t for t in arguments.values() if isinstance(t, torch.Tensor)]
    before = [t.detach().clone() for t in tensors]
    with pytest.raises(kind, match=rf"^sampled_softmax_loss: .*{message}"):
        ssc.sampled_softmax_loss(**arguments)
    for tensor, copy in zip(tensors, before, strict=True):
        assert tensor.is_meta or torch.equal(tensor.detach(), copy)
        assert tensor.grad is None


@pytest.mark.parametrize("name", ["input", "weight", "bias", "target"])
def test_positions_are_named_in_any_shape(either: str, name: str) -> None:
    """The first offender of a [*] target is named by its whole position."""
    if name != "target":
        arguments = good() | {name: "text"}
        with pytest.raises(TypeError, match=rf"{name} must be a Tensor, got str"):
            ssc.sampled_softmax_loss(**arguments)
        return
    target = torch.zeros(2, 3, dtype=torch.int64)
    target[1, 2] = C + 1
    with pytest.raises(IndexError, match=r"got 1001 at \[1, 2\]"):
        ssc.sampled_softmax_loss(
            torch.randn(2, 3, D),
            torch.randn(C, D),
            target,
            ssc.Samples(torch.arange(3)),
        )


def test_values_on_a_gpu_are_looked_at_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    target = with_value(B, 4, C)
    with _rules.device_rules(frozenset()):
        for value in ("0", ""):
            monkeypatch.setenv("SSC_CHECK_TARGETS", value)
            _checks.check_id_range("f", "target", target, C, -100)
        monkeypatch.setenv("SSC_CHECK_TARGETS", "1")
        with pytest.raises(IndexError, match=r"f: target must be .* got 1000 at \[4\]"):
            _checks.check_id_range("f", "target", target, C, -100)


def test_the_operators_protect_memory(native: None) -> None:
    """Called without the checks above them, they refuse ids out of range themselves."""
    g = good()
    rest = (None, None, 1.0, True, -100)
    leaves = (g["input"].detach(), g["weight"].detach(), g["bias"].detach())
    for target, ids in (
        (with_value(B, 2, C), torch.arange(S)),
        (torch.arange(B), with_value(S, 2, -1)),
    ):
        with pytest.raises(RuntimeError, match="out of range"):
            torch.ops.sampled_softmax.loss_rows(*leaves, target, ids, *rest)
        with pytest.raises(RuntimeError, match="out of range"):
            torch.ops.sampled_softmax.loss_and_grads(
                *leaves, target, ids, *rest, torch.ones(B), False, True
            )


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: ssc.Softmax(margin=float("nan")),
            ValueError,
            r"margin must be in \[0, inf\), got",
        ),
        (
            lambda: ssc.Softmax(angular_margin=4.0),
            ValueError,
            r"angular_margin must be in \[0, 3.14",
        ),
        (
            lambda: ssc.Softmax(label_smoothing=1.1),
            ValueError,
            r"label_smoothing must be in \[0, 1\]",
        ),
        (lambda: ssc.Softmax(label_smoothing="1"), TypeError, "label_smoothing must be a float"),
        (
            lambda: ssc.Softmax(label_smoothing=0.1, reweighted=True),
            ValueError,
            "label_smoothing does not go with reweighted=True",
        ),
        (
            lambda: ssc.GBCE(calibration=1.5),
            ValueError,
            r"calibration must be in \[0, 1\], got 1.5",
        ),
    ],
)
def test_objectives(make: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=rf"(Softmax|GBCE): {message}"):
        make()


def test_exact(either: str) -> None:
    h, w, target = torch.randn(3, 4), torch.randn(9, 4), torch.tensor([0, 9, 2])
    with pytest.raises(IndexError, match=r"exact_cross_entropy: target must be .* got 9 at \[1\]"):
        exact.exact_cross_entropy(h, w, target)
    with pytest.raises(IndexError, match=r"log_prob: ids must be .* got 9 at \[1\]"):
        exact.log_prob(h, w, target)
    with pytest.raises(ValueError, match=r"log_prob: ids must be \[3\] or \[3, 'K'\].*got \[4\]"):
        exact.log_prob(h, w, torch.arange(4))
    with pytest.raises(ValueError, match="topk: k must be at most C=9, got 10"):
        exact.topk(h, w, 10)
    with pytest.raises(ValueError, match="topk: k must be at least 1, got 0"):
        exact.topk(h, w, 0)
    with pytest.raises(ValueError, match=r"logits: weight must be \[C, D=5\]"):
        exact.logits(torch.randn(2, 5), w)


@pytest.mark.parametrize("name", ["input", "weight", "target", "bias", "sample_weight"])
def test_layouts(name: str) -> None:
    given = {"input": torch.ones(3, 4), "weight": torch.ones(9, 4), "target": torch.arange(3)}
    given |= {"bias": torch.ones(9), "sample_weight": torch.ones(3)}
    given[name] = given[name].to_sparse()
    samples = ssc.Samples(torch.arange(5))
    message = rf"loss: {name} must be a dense tensor, got .*sparse_coo: pass {name}.to_dense\(\)"
    with pytest.raises(TypeError, match=message):
        ssc.sampled_softmax_loss(samples=samples, **given)


@pytest.mark.parametrize("name", ["sparse_grad", "return_details", "remove_accidental_hits"])
def test_a_word_is_no_bool(name: str) -> None:
    with pytest.raises(TypeError, match=f"loss: {name} must be a bool, got str"):
        make_problem(3, 4, 9, 5).loss(**{name: "no"})

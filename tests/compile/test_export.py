"""torch.export gives what eager mode gives; torch.jit, which can't, is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sampled_softmax_cuda as ssc

B, D, C, S = 4, 8, 40, 12
h, t = torch.randn(B, D), torch.tensor([3, 1, 39, 0])
COUNTS = torch.arange(1.0, C + 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestTorchScript:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: ssc.SampledSoftmaxLoss(D, C, S),
            lambda: ssc.UniformSampler(C),
            lambda: ssc.QueueSampler(C),
            lambda: ssc.tf.LearnedUnigram(C),
            lambda: ssc.cntk.CrossEntropyWithSampledSoftmax(C, D, S, torch.ones(C)),
            lambda: torch.nn.Sequential(torch.nn.Linear(3, D), ssc.SampledSoftmaxLoss(D, C, S)),
        ],
    )
    def test_script(self, make: Callable[[], Any]) -> None:
        with pytest.raises(RuntimeError, match=r"can't be compiled by torch.jit.*torch.export"):
            torch.jit.script(make())

    def test_trace(self) -> None:
        head = ssc.SampledSoftmaxLoss(D, C, S)
        with pytest.raises(RuntimeError, match=r"can't be compiled by torch.jit.*torch.export"):
            torch.jit.trace(head, (h, t), check_trace=False)
        head.requires_grad_(False).eval()
        for function, arguments in (
            (head, (h, t)),
            (lambda x: head.logits(x), (h,)),
            (lambda x: head.topk(x, 2).indices, (h,)),
            (lambda x: head.log_prob(x, t), (h,)),
        ):
            with pytest.raises(RuntimeError, match=r"can't be compiled by torch.jit.*torch.export"):
                torch.jit.trace(function, arguments, check_trace=False)


EXPORTED: dict[str, Callable[[], Any]] = {
    "log_uniform": lambda: "log_uniform",
    "weights": lambda: COUNTS,
    "streaming": lambda: ssc.StreamingSampler(C),
    "in-batch": lambda: ssc.InBatchSampler(),
    "mixed": lambda: ssc.MixedSampler([ssc.UniformSampler(C), ssc.WeightedSampler(COUNTS)]),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("kind", EXPORTED)
def test_export(native: None, kind: str, replacement: bool, strict: bool) -> None:
    head = ssc.SampledSoftmaxLoss(D, C, S, sampler=EXPORTED[kind](), replacement=replacement)
    exported = torch.export.export(head, (h, t), strict=strict).module()
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = head(h, t)
        torch.manual_seed(seed)
        torch.testing.assert_close(exported(h, t), expected)
    head.eval()
    exported = torch.export.export(head, (h, t), strict=strict).module()
    torch.testing.assert_close(exported(h, t), head(h, t))

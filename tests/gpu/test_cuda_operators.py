"""Arguments that the CUDA operators refuse, because their kernels would read elsewhere. Their
results are tested with the CPU's, by the fixture `backend` (conftest.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.problem import make_problem
from helpers.samplers import key, parts
from sampled_softmax_cuda.ops.negatives import Source
from sampled_softmax_cuda.proposals import uniform

B, D, C, S = 9, 20, 50, 33

pytestmark = pytest.mark.usefixtures("simt")
ops = torch.ops.sampled_softmax


def arguments() -> list[Any]:
    """The arguments of loss_rows."""
    p = make_problem(B, D, C, S)
    return [*(leaf.detach() for leaf in p.leaves), p.target, *parts(p.samples), 0.7, True, -100]


def test_arguments_that_would_read_elsewhere_are_refused() -> None:
    def replaced(index: int, value: Any) -> list[Any]:
        a = arguments()
        a[index] = value
        return a

    h, weight, bias, target, ids, *_ = arguments()
    cases = [
        (replaced(0, h[0]), "must have 2 dimensions"),
        (replaced(1, weight.to(torch.bfloat16)), "of one dtype"),
        (replaced(1, weight[:, :-1].contiguous()), r"weight must be \[C, D=20\]"),
        (replaced(1, weight.T.contiguous().T), "rows must be contiguous"),
        (replaced(2, bias[1:]), r"bias must have shape \[50\]"),
        (replaced(3, target[1:]), r"target must have shape \[9\]"),
        (replaced(4, ids.to(torch.int32)), "ids must be int64"),
        (replaced(5, torch.zeros(S + 1)), r"log_expected_count must have shape \[33\]"),
    ]
    for a, message in cases:
        with pytest.raises(RuntimeError, match=message):
            ops.loss_rows(*a)
    with pytest.raises(RuntimeError, match=r"row_scale must have shape \[9\]"):
        ops.loss_and_grads(*arguments(), torch.ones(B + 1), False, False)
    with pytest.raises(RuntimeError, match="row_scale must have the row outputs' dtype"):
        ops.loss_and_grads(*arguments(), torch.ones(B, dtype=torch.float64), False, False)
    with pytest.raises(RuntimeError, match=r"are not within \[0, C=50\)"):
        ops.logits(h, weight, bias, 0, C + 1, 0.7)
    counted = torch.ones(B, dtype=torch.bool)
    hits, target_logit = torch.full((B, 2), -1), torch.zeros(B)
    for changed, message in [
        ({3: target_logit[1:]}, r"target_logit must have shape \[9\]"),
        ({3: target_logit.double()}, "target_logit must have the row outputs' dtype"),
        ({4: hits[1:]}, r"hits must be \[B, K\]"),
        ({4: hits.to(torch.int32)}, "hits must be int64"),
        ({5: counted[1:]}, r"counted must have shape \[9\]"),
        ({5: counted.to(torch.uint8)}, "counted must be bool"),
        ({6: ids[:0], 7: None}, "ids must not be empty"),
        ({7: torch.zeros(S + 1)}, r"log_expected_count must have shape \[33\]"),
    ]:
        rows = (target_logit, hits, counted)
        a = [h, weight, bias, *rows, *Source(ids, None), 1.0, 0.0, True, False]
        for index, value in changed.items():
            a[index] = value
        with pytest.raises(RuntimeError, match=message):
            ops.negatives_rows(*a)
    for method in (1, 2):
        with pytest.raises(RuntimeError, match="must not exceed the number of classes"):
            ops.sample(key(1), target, *uniform(C), C + 1, method, None)

"""A compiled graph is traced again when torch's setting of float32 products has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.fp32_precision import fp32_precision
from helpers.problem import Problem, make_problem


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


STEPS: dict[str, Callable[[Problem], Tensor]] = {
    "total": lambda p: p.loss(),
    "sparse": lambda p: p.loss(sparse_grad=True),
    "rows": lambda p: p.loss(reduction="none").sum(),
    "cap": lambda p: p.loss(softcap=4.0),
    "logits": lambda p: ssc.logits(p.input, p.weight, bias=p.bias).square().sum(),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_setting_may_change_between_calls(
    native: str, step: Callable[[Problem], Tensor]
) -> None:
    problem = make_problem(31, 40, 90, 33)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)

    def results(function: Callable[[Problem], Tensor]) -> list[Tensor]:
        loss = function(problem)
        grads = torch.autograd.grad(loss, problem.leaves)
        return [loss.detach(), *(grad.to_dense() for grad in grads)]

    for name in ("highest", "medium", "high", "medium", "highest"):
        with fp32_precision(name):
            for got, expected in zip(results(compiled), results(step), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_a_loss_without_gradients(native: str) -> None:
    """Bit for bit what is computed eagerly under the same setting."""
    h, w, b = (leaf.detach() for leaf in make_problem(31, 40, 90, 33).leaves)
    compiled = torch.compile(ssc.logits, backend="eager", fullgraph=True)
    seen = []
    for name in ("medium", "highest", "high"):
        with fp32_precision(name):
            seen.append(compiled(h, w, bias=b))
            assert torch.equal(seen[-1], ssc.logits(h, w, bias=b))
    units = dict(line.split() for line in torch.ops.sampled_softmax.cpu_isa()[1].splitlines())
    assert torch.equal(seen[0], seen[1]) == (units["bfloat16"] == units["float32"])

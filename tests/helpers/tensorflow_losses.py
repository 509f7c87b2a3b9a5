"""`ssc.tf`'s losses of the cases of tensorflow_table.py, and the same in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import sampled_softmax_cuda as ssc

LEAVES = ("weights", "biases", "inputs")
B, C, D, S = 7, 40, 6, 15


def ours(case: dict[str, Any], dtype: Any = torch.float32, **options: Any) -> dict[str, Any]:
    """Loss [B] and gradients of (loss * upstream).sum(), as `loss_by_tensorflow`."""
    arguments = {k: v for k, v in case.items() if k not in ("loss", "upstream")}
    leaves = {name: torch.tensor(case[name], dtype=dtype, requires_grad=True) for name in LEAVES}
    loss = getattr(ssc.tf, case["loss"])(**{**arguments, **leaves, **options})
    (loss * torch.tensor(case["upstream"])).sum().backward()
    grads = {name: leaf.grad for name, leaf in leaves.items()}
    return {"loss": loss.detach(), **grads}


def truth(case: dict[str, Any]) -> dict[str, Any]:
    """The same in float64 by the formulas; every sample that is a label of its row is left out."""
    weights, biases, inputs = (
        torch.tensor(np.array(case[name]), dtype=torch.float64, requires_grad=True)
        for name in LEAVES
    )
    labels = torch.as_tensor(case["labels"])
    ids, true_count, count = (torch.as_tensor(v) for v in case["sampled_values"])
    z = inputs @ weights.T + biases
    true_logits = z.gather(1, labels) - true_count.double().log()
    sampled_logits = z[:, ids] - count.double().log()
    if case["remove_accidental_hits"]:
        hits = (labels[:, :, None] == ids).any(1)
        sampled_logits = sampled_logits.masked_fill(hits, -torch.inf)
    logits = torch.cat((true_logits, sampled_logits), 1)
    if case["loss"] == "sampled_softmax_loss":
        loss = logits.logsumexp(1) - true_logits.mean(1)
    else:
        loss = torch.nn.functional.softplus(logits).sum(1) - true_logits.mean(1)
    (loss * torch.tensor(case["upstream"])).sum().backward()
    grads = {"weights": weights.grad, "biases": biases.grad, "inputs": inputs.grad}
    return {"loss": loss.detach(), **grads}


def assert_same(case: dict[str, Any], actual: dict[str, Any], expected: Any, tol: float) -> None:
    for name, value in actual.items():
        torch.testing.assert_close(
            value.to_dense().double(),
            torch.as_tensor(expected[name], dtype=torch.float64),
            rtol=tol,
            atol=tol,
            msg=lambda text, name=name: (
                f"{name} of {case['loss']}, num_true={case['num_true']},"
                f" remove_accidental_hits={case['remove_accidental_hits']}: {text}"
            ),
        )

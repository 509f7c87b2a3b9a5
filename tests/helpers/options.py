"""Options of the loss by name, and what holds for each: losses and gradients in float64."""

from __future__ import annotations

from typing import Any

import torch

import sampled_softmax_cuda as ssc

from .problem import Problem
from .truth import assert_close_to_truth, option_truth

OPTIONS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "temperature": {"temperature": 0.3},
    "negatives": {"correction": "negatives"},
    "none": {"correction": "none"},
    "hits kept": {"remove_accidental_hits": False},
    "softcap": {"softcap": 1.5, "temperature": 0.5},
    "nce": {"objective": "nce"},
    "nce without hits": {"objective": "nce", "remove_accidental_hits": False, "temperature": 0.5},
    "nce softcap": {"objective": "nce", "softcap": 2.0},
    "negative sampling": {"objective": "negative_sampling"},
    "margin": {"objective": ssc.Softmax(margin=0.4), "temperature": 0.2},
    "cosine": {"cosine": True, "temperature": 0.1},
    "cosface": {"cosine": True, "temperature": 0.05, "objective": ssc.Softmax(margin=0.35)},
    "arcface": {"cosine": True, "temperature": 0.1, "objective": ssc.Softmax(angular_margin=0.5)},
    "beyond pi": {"cosine": True, "temperature": 0.2, "objective": ssc.Softmax(angular_margin=2.8)},
    "label smoothing": {"objective": ssc.Softmax(label_smoothing=0.2)},
    "smoothing, hits kept": {
        "objective": ssc.Softmax(label_smoothing=0.1),
        "remove_accidental_hits": False,
    },
    "smoothing, no correction": {
        "objective": ssc.Softmax(label_smoothing=0.1),
        "correction": "none",
    },
}
SINGLE: dict[str, dict[str, Any]] = {
    "gbce": {"objective": "gbce"},
    "gbce, calibrated": {"objective": ssc.GBCE(calibration=1.0)},
    "reweighted": {"objective": ssc.Softmax(reweighted=True)},
    "reweighted softcap": {"objective": ssc.Softmax(reweighted=True), "softcap": 2.0},
}


def check_options(p: Problem, dtype: torch.dtype, sparse_grad: bool = False) -> None:
    """Losses, details and gradients of a random weighting of them."""
    ours, double = p.to(dtype), p.to(dtype).to(torch.float64)
    loss, details = ours.loss(reduction="none", return_details=True, sparse_grad=sparse_grad)
    same = p.to(dtype)
    same_loss, same_details = same.reference(reduction="none", return_details=True)
    expected, expected_details = option_truth(double)
    scale = 4 / ours.options.get("temperature", 1.0)
    assert_close_to_truth(loss, same_loss, expected, "loss", slack=8, scale=scale)
    sigmoid = p.options.get("objective") in ("nce", "negative_sampling", "gbce")
    for name in ("target_logit",) if sigmoid else ("lse", "target_logit"):
        row, same_row = getattr(details, name), getattr(same_details, name)
        assert_close_to_truth(row, same_row, expected_details[name], name, slack=8, scale=scale)
    assert torch.equal(details.error.double(), expected_details["error"])

    factors = torch.linspace(-1, 2, loss.numel(), dtype=torch.float64)
    grads = torch.autograd.grad((loss * factors.to(loss.dtype)).sum(), ours.leaves)
    same_grads = torch.autograd.grad(
        (same_loss * factors.to(loss.dtype)).sum(), same.leaves, allow_unused=True
    )
    truths = torch.autograd.grad((expected * factors).sum(), double.leaves)
    # Reduced, the gradients are computed in the forward pass.
    total = ours.loss(reduction="sum", sample_weight=factors, sparse_grad=sparse_grad)
    total_grads = torch.autograd.grad(total, ours.leaves)
    for ours_too in (grads, total_grads):
        names = ("input", "weight", "bias")
        for name, a, b, c in zip(names, ours_too, same_grads, truths, strict=False):
            assert_close_to_truth(a, b, c, f"gradient of {name}", slack=32, scale=scale)

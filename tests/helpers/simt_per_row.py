"""A step of per-row negatives on the bench, stage by stage, with torch's CPU tensors in and out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .simt_bench import Bench

SPLITS = 2


class Problem:
    """Tensors of a step and of what its kernels leave behind."""

    def __init__(
        self, batch: int, dim: int, classes: int, samples: int, dtype: torch.dtype, sigmoid: bool
    ) -> None:
        g = torch.Generator().manual_seed(2)
        self.dtype, self.shape = dtype, (batch, dim, classes, samples)
        self.input = torch.randn(batch, dim, generator=g).to(dtype)
        self.weight = (torch.randn(classes, dim, generator=g) / dim**0.5).to(dtype)
        self.bias = torch.randn(classes, generator=g).to(dtype)
        self.target_logit = torch.randn(batch, generator=g)
        self.ids = torch.randint(classes, (batch, samples), generator=g)
        self.hits = torch.stack((self.ids[:, 0], torch.full((batch,), -1)), dim=1).contiguous()
        self.counted = torch.arange(batch) % 3 != 1
        self.log_count = torch.randn(batch, samples, generator=g)
        self.log_count[:, 1::7] = torch.inf
        self.row_scale = torch.randn(batch, generator=g)
        self.scalars = (0.8, 2.0, sigmoid)

    def inputs(self) -> tuple[Any, ...]:
        return (
            *(self.input, self.weight, self.bias, self.target_logit, self.hits, 2, True),
            *(self.counted, self.ids, self.log_count, *self.shape, *self.scalars),
        )


def run(bench: Bench, p: Problem) -> dict[str, Tensor]:
    """A whole step, stage by stage."""
    batch, dim, classes, samples = p.shape
    for name in ("input", "weight", "bias", "target_logit", "hits", "counted", "ids", "log_count"):
        bench.buffer(name, getattr(p, name), "in")
    bench.buffer("row_scale", p.row_scale, "in")
    out = {
        "parts": torch.empty(SPLITS, batch, 3),
        "logits": torch.empty(batch, samples),
        "loss": torch.empty(batch),
        "peak": torch.empty(batch),
        "lse": torch.empty(batch),
        "classes": torch.empty(batch, samples, dtype=torch.int64),
        "entries": torch.empty(batch, samples, dtype=torch.int64),
        "grad_input": torch.empty(batch, dim, dtype=p.dtype),
    }
    for name, tensor in out.items():
        bench.buffer(name, tensor, "out")
    suffix = str(p.dtype).removeprefix("torch.")

    def stage(name: str, *arguments: Any) -> None:
        bench.call(f"{name}_{suffix}", *p.inputs(), *arguments)

    stage("score_rows", out["parts"], SPLITS, out["logits"])
    stage("finish_rows", out["parts"], SPLITS, out["loss"], out["peak"], out["lse"])
    stage(
        "row_coefficients", out["lse"], p.row_scale, out["logits"], out["classes"], out["entries"]
    )
    stage("row_input_grad", out["logits"], out["grad_input"])
    ordered, order = out["classes"].flatten().sort(stable=True)
    out["grad_weight"] = torch.zeros(classes, dim)
    out["grad_bias"] = torch.zeros(classes)
    for name, tensor in (("sorted", ordered), ("order", order)):
        bench.buffer(name, tensor, "in")
    for name in ("grad_weight", "grad_bias"):
        bench.buffer(name, out[name])
    grads = (out["logits"], out["grad_weight"], out["grad_bias"], None)
    stage("row_class_grads", ordered, order, *grads)
    return out

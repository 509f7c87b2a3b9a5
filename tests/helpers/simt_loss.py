"""The loss kernels of csrc/cuda on the bench, with torch's CPU tensors in and out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sampled_softmax_cuda.ops.loss import Arguments

from .simt_bench import Bench


class Problem(Arguments):
    """The arguments of the op loss_rows."""

    __slots__ = ()

    def double(self) -> Problem:
        """The same numbers in float64."""
        wide = {
            name: value.double()
            for name, value in self._asdict().items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        return self._replace(**wide)


class Path(NamedTuple):
    """The facts that decide how matmuls are computed; the GPU's compute capability is major.x."""

    dtype: torch.dtype
    major: int = 8
    tf32: bool = False

    def __str__(self) -> str:
        return f"{name_of(self.dtype)}{'-tf32' * self.tf32}-{self.major}.x"


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Relative to the largest entry. Losses and gradients of bfloat16 and float16 are accumulated in
# float32; P and the gradients are rounded to the type once each.
LOSS_TOLERANCE = dict.fromkeys(DTYPES, 4e-6) | {torch.float64: 1e-13}
GRAD_TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 3e-6,
    torch.bfloat16: 1.2e-2,
    torch.float16: 1.5e-3,
}
OPTIONS = [
    {"inv_temperature": 1 / 0.07},
    {"row_padding": 8},  # aligned rows of a wider matrix
    {"row_padding": 1},  # rows at odd addresses
]

# One of each kind: fused multiply-adds, tensor cores, and those of GPUs without tensor cores.
PATHS = [
    Path(torch.float64),
    Path(torch.float32),
    Path(torch.float32, tf32=True),
    Path(torch.bfloat16),
    Path(torch.float16),
    Path(torch.bfloat16, major=7),
    Path(torch.float16, major=7),
]


class Gradients(NamedTuple):
    rows: Tensor  # [4, B]: loss, lse, target logit, error
    input: Tensor
    weight: Tensor  # dense, [C, D]
    bias: Tensor | None


def make_problem(
    batch: int,
    dim: int,
    samples: int,
    classes: int,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    bias: bool = True,
    corrected: bool = True,
    row_padding: int = 0,
    inv_temperature: float = 1.0,
    remove_accidental_hits: bool = True,
    ignore_index: int = -100,
) -> Problem:
    """Random numbers; row 1, where there is one, is ignored. Rows lie dim + row_padding apart."""
    g = torch.Generator().manual_seed(seed)

    def matrix(rows: int) -> Tensor:
        wide = torch.randn(rows, dim + row_padding, generator=g) / max(dim, 1) ** 0.25
        return wide.to(dtype)[:, :dim]

    target = torch.randint(classes, (batch,), generator=g)
    if batch > 1:
        target[1] = ignore_index
    return Problem(
        matrix(batch),
        matrix(classes),
        torch.randn(classes, generator=g).to(dtype) if bias else None,
        target,
        torch.randint(classes, (samples,), generator=g),
        torch.randn(samples, generator=g) if corrected else None,
        torch.randn(batch, generator=g) if corrected else None,
        inv_temperature,
        remove_accidental_hits,
        ignore_index,
    )


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _arguments(bench: Bench, p: Problem, path: Path) -> list[Tensor | float | bool | None]:
    tensors = list(p[:7])
    for name, tensor in zip(Problem._fields, tensors, strict=False):
        if tensor is not None:
            bench.buffer(name, tensor, "in")
    return [
        *tensors,
        *(*p.input.shape, p.weight.shape[0], 0 if p.ids is None else p.ids.shape[0]),
        *(p.input.stride(0), p.weight.stride(0), p.ignore_index),
        *(
            p.inv_temperature,
            p.remove_accidental_hits,
            bench.capability(path.major, path.tf32),
            path.tf32,
        ),
    ]


def _output(bench: Bench, name: str, *shape: int, dtype: torch.dtype) -> Tensor:
    """Written by the kernels; what they leave out stays NaN, or -7."""
    fill = torch.nan if dtype.is_floating_point else -7
    return bench.buffer(name, torch.full(shape, fill, dtype=dtype), "out")


def loss_rows(bench: Bench, p: Problem, *, splits: int = 1, path: Path | None = None) -> Tensor:
    """[4, B]: loss, lse, target logit and error of each row."""
    dtype, batch = p.input.dtype, p.input.shape[0]
    arguments = _arguments(bench, p, path or Path(dtype))
    rows = _output(bench, "rows", 4, batch, dtype=accumulator(dtype))
    workspace = torch.empty(loss_rows_bytes(bench, dtype, batch, splits), dtype=torch.uint8)
    bench.buffer("workspace", workspace, "out")
    bench.call(f"loss_rows_{name_of(dtype)}", *arguments, rows, splits, workspace)
    return rows


def loss_rows_bytes(bench: Bench, dtype: torch.dtype, batch: int, splits: int) -> int:
    out = _output(bench, "bytes", 1, dtype=torch.int64)
    bench.call(f"loss_rows_bytes_{name_of(dtype)}", batch, splits, out)
    return int(out)


def logits(
    bench: Bench,
    p: Problem,
    begin: int,
    end: int,
    *,
    padding: int = 0,
    splits: int = 1,
    path: Path | None = None,
) -> Tensor:
    """[B, end - begin], as columns of a wider matrix where there is padding."""
    dtype = p.input.dtype
    arguments = _arguments(bench, p, path or Path(dtype))
    shape = (p.input.shape[0], end - begin + padding)
    out = _output(bench, "logits", *shape, dtype=accumulator(dtype))
    bench.call(f"logits_{name_of(dtype)}", *arguments, begin, end, out, shape[1], splits)
    assert out[:, end - begin :].isnan().all()
    return out[:, : end - begin]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def layout(bench: Bench, p: Problem, multiprocessors: int) -> list[int]:
    """Bytes of the workspace, rows of a chunk, splits of the scores and of the input's gradient."""
    out = _output(bench, "layout", 4, dtype=torch.int64)
    batch, dim = p.input.shape
    name = f"workspace_layout_{name_of(p.input.dtype)}"
    bench.call(name, batch, dim, p.ids.shape[0], multiprocessors, out)
    return out.tolist()


def loss_and_grads(
    bench: Bench,
    p: Problem,
    row_scale: Tensor,
    *,
    sparse: bool = True,
    path: Path | None = None,
    multiprocessors: int = 4,
    chunk_rows: int = -1,
    input_splits: int = -1,
) -> Gradients:
    """Losses, and the gradients of sum(row_scale * loss); sparse ones are summed up here."""
    dtype = p.input.dtype
    (batch, dim), classes = p.input.shape, p.weight.shape[0]
    workspace_bytes = layout(bench, p, multiprocessors)[0]
    arguments = _arguments(bench, p, path or Path(dtype))
    entries = p.ids.shape[0] + batch
    sorted_classes, order = torch.sort(torch.cat((p.ids, p.target)), stable=True)
    bench.buffer("classes", sorted_classes, "in")
    bench.buffer("order", order, "in")
    bench.buffer("row_scale", row_scale, "in")
    rows = _output(bench, "rows", 4, batch, dtype=accumulator(dtype))
    workspace = bench.buffer("workspace", torch.empty(workspace_bytes, dtype=torch.uint8), "out")
    grad_input = _output(bench, "grad_input", batch, dim, dtype=dtype)
    if sparse:
        grad_weight = _output(bench, "grad_weight", entries, dim, dtype=dtype)
        grad_bias = _output(bench, "grad_bias", entries, dtype=dtype)
        grad_classes = _output(bench, "grad_classes", entries, dtype=torch.int64)
    else:
        grad_weight = bench.buffer("grad_weight", torch.zeros(classes, dim, dtype=dtype))
        grad_bias = bench.buffer("grad_bias", torch.zeros(classes, dtype=dtype))
        grad_classes = None
    has_bias = p.bias is not None
    bench.call(
        f"loss_and_grads_{name_of(dtype)}",
        *arguments,
        *(rows, row_scale, sorted_classes, order, sparse),
        *(grad_input, grad_weight, grad_bias if has_bias else None, grad_classes),
        *(multiprocessors, chunk_rows, input_splits, workspace),
    )
    if grad_classes is not None:
        dense = torch.zeros(classes, dim, dtype=torch.float64)
        grad_weight = dense.index_add_(0, grad_classes, grad_weight.double())
        dense = torch.zeros(classes, dtype=torch.float64)
        grad_bias = dense.index_add_(0, grad_classes, grad_bias.double()) if has_bias else grad_bias
    return Gradients(rows, grad_input, grad_weight, grad_bias if has_bias else None)

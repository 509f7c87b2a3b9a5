"""A MODEL, not a measurement: the least time that the CUDA kernels' counted work allows on a GPU.

No figure printed here was taken on a GPU; `make gpu-check` measures where there is one. Each kernel
of a step (loss, input and class gradients of shared negatives, csrc/cuda/loss/step.cu) is
bounded by the slowest of

    arithmetic   its FLOP, in whole tiles, over the rate of the instructions that it uses
    L2           the bytes that its blocks ask for, by the formula of the kernels' head comments
    memory       the bytes that have to come from or go to memory at least once
    issue        its instructions, counted, over the schedulers' rate: 4 warp instructions per
                 multiprocessor and clock

and a step by the sum of its kernels, plus 2 us for each launch (which a CUDA graph mostly saves).
That formula is what csrc/simt counts (tests/kernels/test_simt_gates.py), so the bounds are those of
this code, not of the problem. Where the workspace of a chunk, at most 64 MiB, fits L2 together with
the operands, its traffic is not counted as memory traffic.

Instructions are those of the PTX for 8.0 as an executor runs it (tests/ptx/README.md), for each
mma or fused multiply-add of a matmul, and for each 128 bytes of the others' traffic. They were
counted without bias at B=512 S=2048 (plain float32 at B=256 S=1024) and D=512, `score` at D=128 as
well; float32's matmuls, tf32 or not, at D=64 and D=128. The machine's own are fewer: PTX loads
every parameter by one of its own. "us before" is the bound by the counts from before the epilogues
and element-wise kernels were rewritten (26209ca), when input_grad was a kernel of its own for any
number of splits.

Rates: the makers' data sheets (dense, boost clock). Tensor cores are programmed through mma.sync,
which on Hopper reaches 0.62 of the peak that needs wgmma (Luo et al., "Dissecting the NVIDIA Hopper
Architecture", 2025); for B200 the same rate per multiprocessor and clock is assumed. L2 rates: 64
bytes per multiprocessor and clock, what its port takes, times 0.7.

    python benchmarks/gpu_model.py
    python benchmarks/gpu_model.py --shape 8192,4096,8192 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import arguments

SIZES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}
LAUNCH = 2e-6
CHUNK_BYTES = 64 << 20
TILE = 128  # csrc/cuda/tile/{fma,tensor_core}.h
DEPTH_BYTES = 64  # csrc/cuda/tile/operand.h
ISSUE_PER_CLOCK = 4  # warp instructions of a multiprocessor

# FLOP of a warp's instruction that multiplies: mma.m16n8k16, mma.m16n8k8, a fused multiply-add.
MULTIPLY_FLOP = {"float32": 64, "tf32": 2048, "bfloat16": 4096, "float16": 4096}


@dataclass(frozen=True)
class Gpu:
    """Data-sheet rates; FLOP/s dense, with float32 accumulation."""

    name: str
    multiprocessors: int
    clock: float
    fma: float
    tensor_bf16: float
    tensor_tf32: float
    mma_share: float
    memory: float
    l2_bytes: int

    @property
    def l2(self) -> float:
        return 0.7 * 64 * self.multiprocessors * self.clock

    @property
    def issue(self) -> float:
        """Warp instructions per second."""
        return ISSUE_PER_CLOCK * self.multiprocessors * self.clock

    def arithmetic(self, dtype: str) -> float:
        """FLOP/s of the products of `dtype`."""
        if dtype == "float32":
            return self.fma
        return self.mma_share * (self.tensor_tf32 if dtype == "tf32" else self.tensor_bf16)


GPUS = (
    Gpu("A100 SXM 80GB", 108, 1.41e9, 19.5e12, 312e12, 156e12, 1.0, 2.04e12, 40 << 20),
    Gpu("H100 SXM", 132, 1.83e9, 66.9e12, 989e12, 494e12, 0.62, 3.35e12, 50 << 20),
    Gpu("RTX 4090", 128, 2.52e9, 82.6e12, 165e12, 82.6e12, 1.0, 1.01e12, 72 << 20),
    Gpu("B200", 148, 1.85e9, 74.4e12, 2250e12, 1125e12, 0.31, 7.67e12, 126 << 20),
)

SHAPES = ((512, 256, 4096), (8192, 1024, 8192), (8192, 4096, 8192))

# Published times of the exact loss over all classes, to set the model's numbers beside:
# (GPU, B, D, C, dtype, milliseconds forward and backward, source).
PUBLISHED = (
    ("H100 SXM", 8192, 4096, 131072, "bfloat16", 50.4, "Liger's fused linear cross entropy"),
)


@dataclass(frozen=True)
class Count:
    """Warp instructions per multiplication, or per 128 bytes; over_width / D more for what a kernel
    does per logit."""

    each: float
    over_width: float = 0.0


def by_width(at_512: float, at_128: float) -> Count:
    """From counts at two widths."""
    slope = (at_128 - at_512) / (1 / 128 - 1 / 512)
    return Count(at_512 - slope / 512, slope)


# By kernel and dtype: before, now.
HALF = {
    "target_logits": (Count(13.4), Count(14.9)),
    "score": (by_width(7.71, 20.60), by_width(3.98, 8.78)),
    "probabilities": (Count(21.3), Count(13.9)),
    "input_products": (Count(5.69), Count(3.70)),
    "input_grad": (Count(28.0), Count(15.0)),
    "weight_products": (Count(7.41), Count(4.88)),
    "class_grads": (Count(50.1), Count(16.9)),
}
SINGLE = {  # the others are those of float32
    "target_logits": (Count(5.7), Count(6.5)),
    "probabilities": (Count(15.5), Count(11.4)),
    "input_grad": (Count(19.8), Count(9.8)),
    "class_grads": (Count(35.8), Count(12.0)),
}
COUNTS = {
    "bfloat16": HALF,
    "float16": HALF,
    "tf32": SINGLE
    | {
        "probabilities": (Count(15.5), Count(12.4)),
        "score": (by_width(8.56, 15.01), by_width(6.16, 8.56)),
        "input_products": (Count(9.12), Count(4.48)),
        "weight_products": (Count(10.74), Count(5.54)),
    },
    "float32": SINGLE
    | {
        "score": (by_width(1.593, 1.841), by_width(1.23, 1.31)),
        "input_products": (Count(1.532), Count(1.21)),
        "weight_products": (Count(1.343), Count(1.27)),
    },
}
BEFORE, NOW = 0, 1


@dataclass(frozen=True)
class Work:
    """The work of one kernel, over all its launches in a step: FLOP of matmuls (the others' count
    for nothing), bytes that blocks ask L2 for, bytes that memory has to move."""

    kernel: str
    flop: float
    l2: float
    memory: float
    launches: int = 1

    def instructions(self, dtype: str, dim: int, when: int = NOW) -> float:
        """Those of warps, from COUNTS."""
        count = COUNTS[dtype][self.kernel][when]
        units = self.flop / MULTIPLY_FLOP[dtype] if self.flop > 0 else self.l2 / 128
        return units * (count.each + count.over_width / dim)


def tiles(extent: int, side: int = TILE) -> int:
    return math.ceil(extent / side)


@dataclass(frozen=True)
class Traffic:
    """Bytes that a matmul's blocks ask for: the rows of both operands, and the result."""

    operands: float
    result: float


def matmul_traffic(
    m: int, n: int, k: int, size: int, *, result_size: int = 4, side: int = TILE
) -> Traffic:
    """[m, k] times [k, n]: each tile of the result reads all k of its rows and of its columns."""
    operands = size * k * (m * tiles(n, side) + n * tiles(m, side))
    return Traffic(float(operands), float(result_size * m * n))


def matmul_flop(m: int, n: int, k: int, size: int) -> float:
    """2 m n k, with the padding that whole tiles compute."""
    depth = DEPTH_BYTES // size
    return 2.0 * tiles(m) * tiles(n) * TILE**2 * math.ceil(k / depth) * depth


@dataclass(frozen=True)
class Chunks:
    """How csrc/cuda/loss/step.cu cuts a batch."""

    rows: int
    row_bytes: int
    input_splits: int  # of the samples


def chunks_of(batch: int, dim: int, samples: int, size: int, gpu: Gpu) -> Chunks:
    def row_bytes(splits: int) -> int:
        logits = samples * (4 if size == 4 else 4 + size)  # P takes the place of floats
        return logits + (4 * dim * splits if splits > 1 else 0)

    def rows(splits: int) -> int:
        most = max(1, CHUNK_BYTES // row_bytes(splits))
        return min(most // TILE * TILE if most > TILE else most, batch)

    blocks = tiles(rows(1)) * tiles(dim)
    splits = max(1, min(gpu.multiprocessors // blocks, tiles(samples, 8 * TILE)))
    return Chunks(rows(splits), row_bytes(splits), splits)


def step_work(
    batch: int, dim: int, samples: int, dtype: str, gpu: Gpu, when: int = NOW
) -> Iterator[Work]:
    """The kernels of a step without bias, in their order; sparse gradients of S + B rows."""
    size = SIZES[dtype]
    cut = chunks_of(batch, dim, samples, size, gpu)
    chunk, splits = cut.rows, cut.input_splits
    chunks = math.ceil(batch / chunk)
    logits, exps = 4.0 * batch * samples, float(size * batch * samples)
    inputs, gathered = float(size * batch * dim), float(size * samples * dim)
    entries = samples + batch
    # A chunk's logits and P are written and read again: from L2 where they fit beside the operands.
    held = cut.row_bytes * chunk + gathered + inputs / chunks <= gpu.l2_bytes
    spilled = 0.0 if held else 1.0

    def l2(traffic: Callable[[int], Traffic]) -> float:
        """The bytes of a matmul in chunks of rows, by its traffic for a number of rows."""
        parts = [traffic(min(chunk, batch - first)) for first in range(0, batch, chunk)]
        return sum(part.operands + part.result for part in parts)

    # finish_rows, a few bytes per row, is score's second launch.
    yield Work("target_logits", 0.0, 2 * inputs, 2 * inputs, chunks)
    yield Work(
        "score",
        matmul_flop(batch, samples, dim, size),
        l2(lambda rows: matmul_traffic(rows, samples, dim, size)),
        inputs + gathered * chunks + spilled * logits,
        2 * chunks,
    )
    yield Work("probabilities", 0.0, logits + exps, spilled * (logits + exps), chunks)
    # One split's products go out as dH, W of the targets added on the way.
    merged = splits == 1 and when == NOW
    partial = 4.0 * splits * batch * dim
    yield Work(
        "input_products",
        matmul_flop(batch, dim, samples, size),
        l2(lambda rows: matmul_traffic(rows, dim, samples, size, result_size=0))
        + (2 * inputs if merged else partial),
        spilled * (exps + gathered * chunks) + (2 * inputs if merged else spilled * partial),
        chunks,
    )
    if not merged:
        yield Work("input_grad", 0.0, partial + 2 * inputs, 2 * inputs + spilled * partial, chunks)
    sums = 4.0 * samples * dim  # stored by the first chunk; the others read them too
    yield Work(
        "weight_products",
        matmul_flop(samples, dim, batch, size),
        l2(lambda rows: matmul_traffic(samples, dim, rows, size)) + sums * (chunks - 1),
        spilled * (exps + inputs) + sums,
        chunks,
    )
    out = float(size * entries * dim)
    yield Work(
        "class_grads",
        0.0,
        sums + inputs + out,
        sums + inputs + out,
    )


def bounds(work: Work, gpu: Gpu, dtype: str, dim: int, when: int = NOW) -> dict[str, float]:
    """Seconds that each limit takes by itself."""
    return {
        "arithmetic": work.flop / gpu.arithmetic(dtype),
        "L2": work.l2 / gpu.l2,
        "memory": work.memory / gpu.memory,
        "issue": work.instructions(dtype, dim, when) / gpu.issue,
    }


def step_time(shape: tuple[int, int, int], dtype: str, gpu: Gpu, when: int = NOW) -> float:
    """Seconds of all kernels and launches."""
    return sum(
        max(bounds(work, gpu, dtype, shape[1], when).values()) + work.launches * LAUNCH
        for work in step_work(*shape, dtype, gpu, when)
    )


def exact_matmuls(gpu: Gpu, batch: int, dim: int, classes: int, dtype: str) -> float:
    """Seconds of the three matmuls of the exact loss over all classes, at the same rate."""
    return 6.0 * batch * dim * classes / gpu.arithmetic(dtype)


def print_sheet(gpu: Gpu, shape: tuple[int, int, int], dtype: str) -> None:
    batch, dim, samples = shape
    print(f"\n{gpu.name}, B={batch} D={dim} S={samples} {dtype}: MODEL")
    print(
        f"  {'kernel':16s} {'us':>9s} {'us before':>9s}  bound by   "
        f" {'arithmetic':>10s} {'L2':>9s} {'memory':>9s} {'issue':>9s}"
    )
    launches = 0
    slower = {
        work.kernel: max(bounds(work, gpu, dtype, dim, BEFORE).values())
        for work in step_work(batch, dim, samples, dtype, gpu, BEFORE)
    }
    for work in step_work(batch, dim, samples, dtype, gpu):
        limits = bounds(work, gpu, dtype, dim)
        by, seconds = max(limits.items(), key=lambda item: item[1])
        launches += work.launches
        parts = " ".join(f"{1e6 * limit:9.1f}" for limit in limits.values())
        times = f"{1e6 * seconds:9.1f} {1e6 * slower.pop(work.kernel):9.1f}"
        print(f"  {work.kernel:16s} {times}  {by:10s}  {parts}")
    for kernel, seconds in slower.items():
        print(f"  {kernel:16s} {'-':>9s} {1e6 * seconds:9.1f}")
    whole, before = (step_time(shape, dtype, gpu, when) for when in (NOW, BEFORE))
    useful = 6.0 * batch * dim * samples
    print(
        f"  {'step':16s} {1e6 * whole:9.1f} {1e6 * before:9.1f}  with {launches} launches;"
        f" {useful / whole / 1e12:.0f} TFLOP/s of 6 B S D,"
        f" {useful / whole / gpu.arithmetic(dtype):.2f} of the arithmetic roof"
    )


def print_published() -> None:
    print("\nBeside published times of the exact loss (measured by others, not here):")
    for name, batch, dim, classes, dtype, milliseconds, source in PUBLISHED:
        gpu = next(gpu for gpu in GPUS if gpu.name == name)
        samples = 8192
        step = step_time((batch, dim, samples), dtype, gpu)
        print(
            f"  {source}, {name}, B={batch} D={dim} C={classes} {dtype}: {milliseconds} ms.\n"
            f"  Model: its three matmuls at mma.sync's rate alone"
            f" {1e3 * exact_matmuls(gpu, batch, dim, classes, dtype):.1f} ms;"
            f" a sampled step with S={samples} at least {1e3 * step:.2f} ms"
        )


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--shape", metavar="B,D,S", type=arguments.shape, help="instead of three shapes"
    )
    options.add_argument("--dtype", choices=tuple(SIZES), help="instead of bfloat16 and float32")
    options.add_argument("--gpu", metavar="NAME", help="those whose name contains this")
    args = options.parse_args()
    shapes = (args.shape,) if args.shape else SHAPES
    wanted = [gpu for gpu in GPUS if (args.gpu or "").lower() in gpu.name.lower()]
    if not wanted:
        options.error(f"--gpu must be part of one of: {', '.join(gpu.name for gpu in GPUS)}")
    print("MODEL: bounds from counted work and data sheets; nothing here was measured on a GPU.")
    for shape in shapes:
        for dtype in (args.dtype,) if args.dtype else ("bfloat16", "float32"):
            for gpu in wanted:
                print_sheet(gpu, shape, dtype)
    print_published()


if __name__ == "__main__":
    main()

"""Time and memory of a training step on a GPU: draw, forward, backward, beside its peers.

FLOP model as in bench_loss.py: three matmuls, 6·B·S·D for the sampled steps, 6·B·C·D for the exact
ones; nothing else counts. The roofs are measured in the same run, in turn with everything else: a
large matmul of the same type by cuBLAS, and a copy (bytes read plus bytes written). Blocks of calls
are timed between two synchronisations, so what PyTorch's own overhead costs is in the times; the
rows "CUDA graph" show the step without it. Memory is the rise of torch's allocator during a step
beyond what was there before it, gradients included.

    python benchmarks/bench_gpu.py                   the GPU that is there
    python benchmarks/bench_gpu.py --device cpu --quick      do all parts run?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bench_loss import our_step
from harness import (
    Case,
    Row,
    digits,
    environment,
    measure,
    parser,
    print_rows,
    rows_from,
    write_csv,
)
from peers import (
    Problem,
    Step,
    cut_cross_entropy_step,
    eager_step,
    full_step,
    liger_step,
    linear_cross_entropy_step,
    make_problem,
    mm_step,
)

MIB = float(1 << 20)
TABLE = ("case", "median_ms", "p10_ms", "p90_ms", "ratio", "tflops", "gb_per_s", "share_of_roof")
TABLE += ("extra_mib", "failure")


@dataclass(frozen=True)
class Config:
    """A shape of the step; tf32 lets float32 products run on tensor cores, ours and the peers'."""

    batch: int
    width: int
    samples: int
    classes: int
    dtype: str
    tf32: bool = False

    def title(self) -> str:
        return (
            f"B={self.batch} D={self.width} S={self.samples} C={self.classes} {self.dtype}"
            f"{' by tf32' if self.tf32 else ''}"
        )


CONFIGS = (
    Config(8192, 1024, 8192, 1_000_000, "bfloat16"),
    Config(8192, 4096, 8192, 131_072, "bfloat16"),
    Config(512, 256, 4096, 1_000_000, "bfloat16"),
    Config(8192, 1024, 8192, 131_072, "float32"),
    Config(8192, 1024, 8192, 131_072, "float32", tf32=True),
    Config(512, 256, 4096, 1_000_000, "float32"),
)
QUICK = (Config(16, 16, 32, 1000, "float32"),)


class Device:
    """The GPU, or for a trial run the CPU."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_gpu = name != "cpu"

    def finish(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def extra_memory(self, step: Step) -> float | str:
        """MiB that a step takes beyond what was allocated before it."""
        if not self.is_gpu:
            return ""
        self.finish()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        self.finish()
        return round((torch.cuda.max_memory_allocated() - before) / MIB, 1)

    def describe(self) -> Row:
        if not self.is_gpu:
            return {"device": "cpu"}
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }


def graphed(step: Step) -> Step:
    """The step captured once and replayed; its negatives are drawn anew at every replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def roof_steps(config: Config, device: Device, quick: bool) -> dict[str, tuple[Step, Row]]:
    """cuBLAS on a large square matrix, and a copy, each with the work that it does."""
    side = 256 if quick else 8192
    a = torch.randn(side, side, device=device.name).to(getattr(torch, config.dtype))
    source = torch.empty((1 if quick else 1024) << 20, dtype=torch.uint8, device=device.name)
    target = torch.empty_like(source)
    return {
        "roof: matmul": (lambda: a @ a, {"flop": 2.0 * side**3}),
        "roof: copy": (lambda: target.copy_(source), {"bytes": 2.0 * source.numel()}),
    }


def contenders(
    problem: Problem, config: Config, device: Device
) -> dict[str, tuple[Callable[[], Step], float]]:
    """By name: what makes the step, and the FLOP that it counts."""
    sampled = 6.0 * config.batch * config.samples * config.width
    exact = 6.0 * config.batch * config.classes * config.width
    result: dict[str, tuple[Callable[[], Step], float]] = {
        "ours": (lambda: our_step(problem, replacement=True), sampled),
        "ours, without replacement": (lambda: our_step(problem, replacement=False), sampled),
    }
    if device.is_gpu:
        result["ours, CUDA graph"] = (lambda: graphed(our_step(problem, replacement=True)), sampled)
    result |= {
        "three GEMMs, torch.mm": (lambda: mm_step(problem), sampled),
        "eager, sparse gradient": (lambda: eager_step(problem, sparse=True), sampled),
        "torch.compile, dense gradient": (
            lambda: eager_step(problem, sparse=False, compiled=True),
            sampled,
        ),
        "F.cross_entropy, all classes": (lambda: full_step(problem), exact),
        "F.linear_cross_entropy, all classes": (lambda: linear_cross_entropy_step(problem), exact),
        "cut-cross-entropy, all classes": (lambda: cut_cross_entropy_step(problem), exact),
        "Liger, all classes": (lambda: liger_step(problem), exact),
    }
    return result


def _or_raise(make: Callable[[], Step]) -> Step:
    """The step, or one that raises what making it raised: its row then says why it is empty."""
    try:
        return make()
    except Exception as error:
        reason = error

    def run() -> None:
        raise reason

    return run


def run_config(config: Config, device: Device, repetitions: int, quick: bool) -> list[Row]:
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    problem = make_problem(
        config.batch,
        config.width,
        config.samples,
        config.classes,
        getattr(torch, config.dtype),
        "log_uniform",
        device.name,
    )
    cases: list[Case] = []
    work: dict[str, Row] = {}
    for name, (step, amount) in roof_steps(config, device, quick).items():
        cases.append(Case(name, step, role="roof", finish=device.finish))
        work[name] = amount
    for name, (make, flop) in contenders(problem, config, device).items():
        role = "ours" if name.startswith("ours") else "peer"
        limit = 3 if "all classes" in name else 10**9
        case = Case(name, _or_raise(make), role, finish=device.finish, max_repetitions=limit)
        cases.append(case)
        work[name] = {"flop": flop}
    rows = rows_from(measure(cases, repetitions), dataclasses.asdict(config))
    by_name = {row["case"]: row for row in rows}
    for case in cases:
        row = by_name[case.name]
        if row["failure"] or row["median_ms"] == "":
            continue
        seconds = row["median_ms"] * 1e-3
        if "flop" in work[case.name]:
            row["tflops"] = digits(work[case.name]["flop"] / seconds / 1e12)
        if "bytes" in work[case.name]:
            row["gb_per_s"] = digits(work[case.name]["bytes"] / seconds / 1e9)
        if case.role != "roof":
            roof = by_name["roof: matmul"].get("tflops")
            row["share_of_roof"] = digits(row["tflops"] / roof) if roof else ""
            row["extra_mib"] = device.extra_memory(case.run)
    print_rows(config.title(), rows, TABLE)
    return rows


def main() -> None:
    options = parser(__doc__)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    options.add_argument("--device", choices=("cuda", "cpu"), default=default)
    args = options.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        options.error("--device cuda: this torch sees no GPU")
    device = Device(args.device)
    rows: list[Row] = []
    for config in QUICK if args.quick else CONFIGS:
        rows += run_config(
            config, device, args.repetitions or (2 if args.quick else 15), args.quick
        )
        if device.is_gpu:
            torch.cuda.empty_cache()
    constants: dict[str, Any] = {**device.describe(), **environment()}
    write_csv(args.output / "bench_gpu.csv", [{**row, **constants} for row in rows])
    print(f"wrote {args.output / 'bench_gpu.csv'}")


if __name__ == "__main__":
    main()

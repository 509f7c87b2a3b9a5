"""Is the instruction set that is chosen by default ever slower than another one of the machine?

Every operator with every dtype, float32 also with products of lower precision, is timed in turn
with the automatic choice and with each set that this CPU runs, named by SSC_CPU_ISA. `ratio` is a
set's time over that of the automatic choice in the same repetition: below 1 it would have been the
better one. One thread is timed by the CPU time that it takes, several by the clock on the wall.
Before the table stand the rates of multiply-adds in registers (roof.py), from which
csrc/cpu/base/isa.cpp derives the choice for bfloat16:
tiles serve where amx_bf16 is there, else pairs if avx512_bf16's is above avx512's.

    python benchmarks/bench_isa.py
    python benchmarks/bench_isa.py --dtype bfloat16,float32 --only step,exact
    python benchmarks/bench_isa.py --dtype float32 --precision medium,high
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import arguments
import torch
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
from peers import Problem, make_problem
from precision import PRECISIONS, in_precision
from roof import ARITHMETIC, load_roof

import sampled_softmax_cuda as ssc

FEW_ROWS = 4
DTYPES = ("float32", "bfloat16", "float16", "float64")
TABLE = ("case", "median_ms", "p10_ms", "ratio")
AUTOMATIC = "automatic"

Run = Callable[[], object]


def loss_step(problem: Problem, rows: int, **options: Any) -> Run:
    """A training step of the first rows, with shared samples unless `per_row` says how many."""
    input = problem.input.detach()[:rows].clone().requires_grad_()
    target = options.pop("target", problem.target)[:rows]
    count = options.pop("per_row", 0)
    sampler = ssc.LogUniformSampler(problem.num_classes)

    def step() -> None:
        if count:
            samples: Any = sampler.sample_keyed(target, count)
        else:
            samples = sampler.sample(target, problem.num_samples, replacement=False)
        ssc.sampled_softmax_loss(
            input,
            problem.weight,
            target,
            samples,
            bias=problem.bias,
            sparse_grad=True,
            **options,
        ).backward()
        problem.drop_gradients()
        input.grad = None

    return step


def forward_only(problem: Problem, rows: int) -> dict[str, Run]:
    """The loss of given samples, the exact loss and logits, over S classes each."""
    count = min(problem.num_samples, problem.num_classes)
    input, weight, bias = problem.input[:rows], problem.weight[:count], problem.bias[:count]
    target = problem.target[:rows] % count
    samples = ssc.Samples(torch.arange(count))

    def without_gradient(run: Run) -> Run:
        return lambda: torch.no_grad()(run)()

    runs: dict[str, Run] = {
        "forward": lambda: ssc.sampled_softmax_loss(input, weight, target, samples, bias=bias),
        "exact": lambda: ssc.exact_cross_entropy(input, weight, target, bias=bias),
        "logits": lambda: ssc.logits(input, weight, bias=bias),
    }
    return {name: without_gradient(run) for name, run in runs.items()}


def operators(problem: Problem) -> Iterator[tuple[str, Run]]:
    """The operators that have kernels per instruction set, on tensors of the dtype."""
    rows = len(problem.target)
    few = min(FEW_ROWS, rows)
    several = torch.randint(problem.num_classes, (rows, 4))
    yield "step", loss_step(problem, rows)
    yield f"step, {few} rows", loss_step(problem, few)
    yield from forward_only(problem, rows).items()
    for name, run in forward_only(problem, few).items():
        yield f"{name}, {few} rows", run
    yield "step, 4 targets", loss_step(problem, rows, target=several)
    yield "step, softcap", loss_step(problem, rows, softcap=30.0)
    yield (
        "step, cosine",
        loss_step(problem, rows, cosine=True, objective=ssc.Softmax(margin=0.2), temperature=0.05),
    )
    yield "step, per row", loss_step(problem, rows, per_row=max(1, problem.num_samples // 64))


def draws(problem: Problem) -> Iterator[tuple[str, Run]]:
    """The samplers' kernels, which know no dtype."""
    count, classes = problem.num_samples, problem.num_classes
    samplers = {
        "uniform": ssc.UniformSampler(classes),
        "log-uniform": ssc.LogUniformSampler(classes),
        "weighted": ssc.WeightedSampler(torch.arange(1.0, classes + 1)),
    }
    for name, sampler in samplers.items():
        for how, replacement in (("", True), (", distinct", False)):

            def draw(sampler: Any = sampler, replacement: bool = replacement) -> object:
                return sampler.sample(problem.target, count, replacement=replacement)

            yield f"draw {name}{how}", draw


def is_available(isa: str) -> bool:
    """True if this CPU runs the kernels of the instruction set."""
    with mock.patch.dict(os.environ, SSC_CPU_ISA=isa):
        return bool(ssc.build_info()["cpu_isa"] == isa)


def cases_of(run: Run, isas: list[str], threads: int) -> list[Case]:
    """The automatic choice first: the ratios are to it."""
    clock = time.process_time if threads == 1 else time.perf_counter
    return [
        Case(isa or AUTOMATIC, run, "ours", threads=threads, env={"SSC_CPU_ISA": isa}, clock=clock)
        for isa in ("", *isas)
    ]


def rates() -> list[Row]:
    """GFLOP/s of multiply-adds in registers on one core, the best of some."""
    roof = load_roof()
    if roof is None:
        return []
    return [
        {
            "operator": "multiply-adds in registers",
            "case": kind,
            "gflops": digits(max(roof.rate(kind, 1, 1e-3, 1e-3) for _ in range(60)) / 1e9),
        }
        for kind in ARITHMETIC
        if roof.available(kind)
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", metavar="B,D,S", default="512,256,4096")
    options.add_argument("--classes", type=int, default=100_000, help="C")
    options.add_argument("--dtype", metavar="A,B", type=arguments.names(DTYPES), default=DTYPES)
    options.add_argument(
        "--precision",
        metavar="A,B",
        type=arguments.names(PRECISIONS),
        default=("highest", "medium"),
        help="of float32 products, as for torch.set_float32_matmul_precision",
    )
    options.add_argument("--only", metavar="A,B", help="operators whose names begin so")
    args = options.parse_args()
    shape = [8, 16, 64] if args.quick else [int(part) for part in args.shape.split(",")]
    classes = 1000 if args.quick else args.classes
    wanted = tuple(args.only.split(",")) if args.only else ("",)
    repetitions = args.repetitions or (2 if args.quick else 9)
    torch.set_num_threads(args.threads)
    isas = [isa for isa in ARITHMETIC[1:] if is_available(isa)]
    reason = ssc.build_info()["cpu_isa_reason"]
    rows = rates()
    print_rows(f"automatic: {reason}", rows, ("case", "gflops"))
    config: Row = dict(zip(("batch", "width", "samples"), shape, strict=True))
    config |= {"classes": classes}
    drawn = False
    for name in args.dtype:
        problem = make_problem(*shape, classes, getattr(torch, name), "log_uniform")
        for precision in args.precision if name == "float32" else ("highest",):
            columns = {**config, "dtype": name, "precision": precision}
            runs = [*operators(problem), *(() if drawn else draws(problem))]
            drawn = True
            for operator, run in runs:
                if not operator.startswith(wanted):
                    continue
                cases = cases_of(in_precision(precision, run), isas, args.threads)
                group = rows_from(measure(cases, repetitions), {**columns, "operator": operator})
                title = name if precision == "highest" else f"{name} in {precision} precision"
                print_rows(f"{operator}, {title}", group, TABLE)
                rows += group
    constants = environment()
    write_csv(args.output / "bench_isa.csv", [{**row, **constants} for row in rows])


if __name__ == "__main__":
    main()

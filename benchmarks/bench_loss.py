"""Time of a whole sampled-softmax training step: draw, forward, backward with sparse gradients.

FLOP model: three matmuls, z = H·Wsᵀ, dH = P·Ws, dWs = Pᵀ·H, so 6·B·S·D of nominal work. The native
step merges samples that were drawn twice before the matmuls, so the share of the roof is stated on
the executed 6·B·U·D with U distinct samples; without replacement, the default here, U = S and both
are one number. The targets' own 6·B·D and everything that is not a matmul count as nothing. The
roof is the multiply-add rate of the unit that the instruction set in use has for the dtype; it is
measured around each timed block, and the column `roof` names it.

    python benchmarks/bench_loss.py                        the headline shape and its peers
    python benchmarks/bench_loss.py --full                 all shapes, dtypes, instruction sets
    python benchmarks/bench_loss.py --shape 128,128,8192 --dtype bfloat16 --isa avx2
    python benchmarks/bench_loss.py --precision highest,medium --peers "ours bfloat16"
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import arguments
import torch
from harness import (
    Case,
    Row,
    draw_times,
    environment,
    isa_in_use,
    measure,
    parser,
    plot,
    print_rows,
    rows_from,
    write_csv,
)
from peers import (
    Problem,
    Step,
    eager_step,
    full_step,
    linear_cross_entropy_step,
    make_problem,
    mm_step,
    onednn_step,
    tensorflow_step,
)
from precision import PRECISIONS, in_precision
from roof import Roof, load_roof

import sampled_softmax_cuda as ssc

TABLE = ("case", "threads", "isa", "median_ms", "p10_ms", "p90_ms", "ratio", "share_of_roof")
TABLE += ("share_p90", "share_nominal", "roof", "roof_gops", "failure")


ISAS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Config:
    """A shape and how it is run; `classes` is C of the sampled step, not of the full peers."""

    batch: int = 512
    width: int = 256
    samples: int = 4096
    classes: int = 1_000_000
    dtype: str = "float32"
    sampler: str = "log_uniform"
    replacement: bool = False
    isas: tuple[str, ...] = ("",)  # "": what the library chooses here
    precisions: tuple[str, ...] = ("highest",)
    threads: tuple[int, ...] = ()
    peers: tuple[str, ...] = ("onednn", "mm", "eager sparse", "eager dense", "compiled dense")
    full_classes: int = 100_000

    def title(self) -> str:
        draws = "with" if self.replacement else "without"
        return (
            f"B={self.batch} D={self.width} S={self.samples} C={self.classes} {self.dtype}, "
            f"{self.sampler} {draws} replacement"
        )

    def columns(self) -> Row:
        names = ("batch", "width", "samples", "classes", "dtype", "sampler", "replacement")
        return {name: getattr(self, name) for name in names}


HEADLINE = Config()
SLOW_PEERS = ("full", "linear_cross_entropy", "tensorflow")
FEW_PEERS = ("onednn", "mm", "eager sparse")
FULL = (
    replace(HEADLINE, isas=("", "avx2", "scalar"), peers=HEADLINE.peers + SLOW_PEERS),
    replace(HEADLINE, replacement=True, peers=()),
    replace(HEADLINE, sampler="uniform", peers=("onednn",)),
    Config(2048, 512, 8192, isas=("", "avx2"), peers=FEW_PEERS),
    Config(128, 128, 8192, isas=("", "avx2"), peers=FEW_PEERS),
    Config(32, 64, 1024, peers=HEADLINE.peers),
    replace(HEADLINE, dtype="bfloat16", peers=FEW_PEERS),
    replace(HEADLINE, dtype="float16", peers=FEW_PEERS),
)


def our_step(problem: Problem, replacement: bool, precision: str = "highest") -> Any:
    """The step through the public functions, with row-sparse gradients and float32 products of a
    precision."""
    sampler = _sampler(problem)

    def step() -> None:
        samples = sampler.sample(problem.target, problem.num_samples, replacement=replacement)
        ssc.sampled_softmax_loss(
            problem.input,
            problem.weight,
            problem.target,
            samples,
            bias=problem.bias,
            sparse_grad=True,
        ).backward()
        problem.drop_gradients()

    return in_precision(precision, step)


def our_step_in(dtype: torch.dtype, problem: Problem) -> Any:
    """The step of the same problem with parameters of another dtype."""
    input, weight, bias = (
        tensor.detach().to(dtype, copy=True).requires_grad_()
        for tensor in (problem.input, problem.weight, problem.bias)
    )
    return our_step(replace(problem, input=input, weight=weight, bias=bias), False)


def _sampler(problem: Problem) -> Any:
    kind = ssc.UniformSampler if problem.sampler == "uniform" else ssc.LogUniformSampler
    return kind(problem.num_classes)


def parts_of_the_step(problem: Problem, replacement: bool) -> dict[str, Any]:
    """The step in pieces, to see where the time goes: the draw; the loss without gradients."""
    sampler = _sampler(problem)
    fixed = sampler.sample(problem.target, problem.num_samples, replacement=replacement)

    def forward_only() -> None:
        with torch.no_grad():
            ssc.sampled_softmax_loss(
                problem.input, problem.weight, problem.target, fixed, bias=problem.bias
            )

    return {
        "ours: draw only": lambda: sampler.sample(
            problem.target, problem.num_samples, replacement=replacement
        ),
        "ours: loss only": forward_only,
    }


def distinct_samples(problem: Problem, replacement: bool) -> float:
    """U: how many of the S samples differ, on average."""
    if not replacement:
        return float(problem.num_samples)
    sampler = _sampler(problem)
    counts = [
        sampler.sample(problem.target, problem.num_samples, replacement=True).ids.unique().numel()
        for _ in range(20)
    ]
    return statistics.fmean(counts)


def our_cases(problem: Problem, config: Config, roof: Roof | None) -> list[Case]:
    """The step at every instruction set and thread count asked for, then its parts."""
    distinct = distinct_samples(problem, config.replacement)
    flops = 6.0 * config.batch * config.width
    cases = []
    for isa, precision, threads in itertools.product(
        config.isas, config.precisions, config.threads
    ):
        step = our_step(problem, config.replacement, precision)
        several = (f"{threads} threads",) if len(config.threads) > 1 else ()
        rounded = (precision,) if precision != "highest" else ()
        name = ", ".join(("ours", *filter(None, (isa,)), *rounded, *several))
        used = isa or isa_in_use()
        multiplied = "bfloat16" if precision == "medium" else config.dtype
        cases.append(
            Case(
                name,
                step,
                role="ours",
                work=flops * distinct,
                roof_kind=roof.kind_for(used, multiplied) if roof else None,
                threads=threads,
                env={"SSC_CPU_ISA": isa} if isa else {},
                columns={"isa": used, "distinct": round(distinct), "precision": precision},
            )
        )
    parts = parts_of_the_step(problem, config.replacement)
    cases += [
        Case(name, run, role="part", threads=config.threads[0]) for name, run in parts.items()
    ]
    return cases


# By name: what makes a step of a problem and a number of threads, its title, how often to run it.
PEERS: dict[str, tuple[Callable[[Problem, int], Step], str, int]] = {
    "onednn": (lambda p, _: onednn_step(p), "three GEMMs, oneDNN", 10**9),
    "mm": (lambda p, _: mm_step(p), "three GEMMs, torch.mm", 10**9),
    "eager sparse": (lambda p, _: eager_step(p, sparse=True), "eager, sparse gradient", 7),
    "eager dense": (lambda p, _: eager_step(p, sparse=False), "eager, dense gradient", 3),
    "compiled dense": (
        lambda p, _: eager_step(p, sparse=False, compiled=True),
        "torch.compile, dense gradient",
        3,
    ),
    "tensorflow": (lambda p, threads: tensorflow_step(p, threads, p.target), "TensorFlow", 10**9),
    "ours bfloat16": (lambda p, _: our_step_in(torch.bfloat16, p), "ours in bfloat16", 10**9),
    "ours float16": (lambda p, _: our_step_in(torch.float16, p), "ours in float16", 10**9),
    "full": (lambda p, _: full_step(p), "F.cross_entropy, all classes", 2),
    "linear_cross_entropy": (
        lambda p, _: linear_cross_entropy_step(p),
        "F.linear_cross_entropy, all classes",
        1,
    ),
}


def peer_cases(problem: Problem, config: Config, roof: Roof | None) -> list[Case]:
    """The peers by name; those that cannot be built here become rows with the reason."""
    threads = config.threads[0]
    nominal = 6.0 * config.batch * config.samples * config.width
    kind = roof.kind_for(isa_in_use(), config.dtype) if roof else None
    cases = []
    for name in config.peers:
        maker, title, limit = PEERS[name]
        exact = name in ("full", "linear_cross_entropy")
        base = problem
        if exact:
            size = min(config.full_classes, config.classes)
            shape = (config.batch, config.width, config.samples, size)
            base = make_problem(*shape, getattr(torch, config.dtype), config.sampler)
        columns = {"classes": base.num_classes}
        try:
            run = maker(base, threads)
        except (ImportError, RuntimeError) as error:
            cases.append(Case(title, _raiser(error), columns=columns))
            continue
        cases.append(
            Case(
                title,
                run,
                work=0.0 if exact else nominal,
                roof_kind=None if exact else kind,
                threads=threads,
                max_repetitions=limit,
                columns=columns,
            )
        )
    return cases


def _raiser(error: Exception) -> Any:
    def run() -> None:
        raise error

    return run


def run_config(config: Config, roof: Roof | None, repetitions: int) -> list[Row]:
    """Measures one configuration and prints its table."""
    shape = (config.batch, config.width, config.samples, config.classes)
    problem = make_problem(*shape, getattr(torch, config.dtype), config.sampler)
    cases = our_cases(problem, config, roof) + peer_cases(problem, config, roof)
    rows = rows_from(measure(cases, repetitions, roof), config.columns())
    for row in rows:
        if row["share_of_roof"] != "" and row["role"] == "ours":
            row["share_nominal"] = row["share_of_roof"] * config.samples / row["distinct"]
    print_rows(config.title(), rows, TABLE)
    return rows


def draw_bars(axes: Any, rows: list[Row]) -> None:
    """Milliseconds per step of the first configuration, ours and the peers, on a log axis."""
    ours = rows[0]
    same = ("batch", "width", "samples", "dtype", "sampler", "replacement")
    shown = [ours] + [
        row
        for row in rows
        if row["role"] == "peer"
        and row["median_ms"] != ""
        and all(row[name] == ours[name] for name in same)
    ]
    shown.sort(key=lambda row: -row["median_ms"])

    def label(row: Row) -> str:
        if row is ours:
            return "sampled_softmax_cuda, whole step"
        return row["case"] + (f" ({row['classes']:,})" if "all classes" in row["case"] else "")

    draw_times(axes, [(label(row), row["median_ms"], row is ours) for row in shown])
    axes.set_title(
        f"Training step on {ours['threads']} cores: B={ours['batch']} D={ours['width']} "
        f"S={ours['samples']} C={ours['classes']:,} {ours['dtype']}",
        fontsize=10,
    )


def configs_from(args: argparse.Namespace) -> list[Config]:
    if args.quick:
        tiny = Config(8, 16, 32, 1000, full_classes=500, peers=(*HEADLINE.peers[:4], "full"))
        configs = [tiny]
    elif args.full:
        configs = list(FULL)
    else:
        configs = [HEADLINE]
    changes: dict[str, Any] = {}
    if args.shape:
        batch, width, samples = args.shape
        changes.update(batch=batch, width=width, samples=samples)
    for name in ("classes", "dtype", "sampler"):
        if getattr(args, name):
            changes[name] = getattr(args, name)
    if args.replacement:
        changes["replacement"] = True
    if args.isa:
        changes["isas"] = args.isa
    if args.precision:
        changes["precisions"] = args.precision
    if args.peers is not None:
        changes["peers"] = args.peers
    threads = (args.threads, 1) if args.full and args.threads > 1 else (args.threads,)
    return [replace(config, threads=threads, **changes) for config in configs]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", metavar="B,D,S", type=arguments.shape, help="another shape")
    options.add_argument("--classes", type=arguments.positive, help="C")
    options.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "float64"))
    options.add_argument("--sampler", choices=("uniform", "log_uniform"))
    options.add_argument("--replacement", action="store_true", help="draw with replacement")
    options.add_argument(
        "--isa",
        metavar="A,B",
        type=arguments.names(ISAS),
        help="instruction sets, as for SSC_CPU_ISA",
    )
    options.add_argument(
        "--precision",
        metavar="A,B",
        type=arguments.names(PRECISIONS),
        help="of float32 products, as for torch.set_float32_matmul_precision",
    )
    options.add_argument(
        "--peers",
        metavar="A,B",
        type=arguments.names(PEERS),
        help=f"of {', '.join(PEERS)}; '' for none",
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    roof = load_roof()
    repetitions = args.repetitions or (2 if args.quick else 21)
    rows: list[Row] = []
    for config in configs_from(args):
        rows += run_config(config, roof, repetitions)
    constants = environment()
    write_csv(args.output / "bench_loss.csv", [{**row, **constants} for row in rows])
    plot(args.output / "bench_loss.png", lambda axes: draw_bars(axes, rows))


if __name__ == "__main__":
    main()

"""How a step grows: with the number of classes, and with threads.

The work of a step with row-sparse gradients, 6·B·S·D, does not depend on C; what may depend on it
is the memory: the gathered rows lie further apart. The steps of all class counts are timed in turn
in one process (their weights together take 4·D·ΣC bytes), then at one thread and at all, and the
peak memory beyond parameters and gradients of each is measured in a process of its own
(bench_memory.py).

    python benchmarks/bench_scale.py
    python benchmarks/bench_scale.py --classes 100000,1000000 --shape 512,256,4096
"""

from __future__ import annotations

from typing import Any

import arguments
import torch
from bench_loss import our_step
from bench_memory import extra_memory
from harness import (
    Case,
    Row,
    environment,
    isa_in_use,
    measure,
    parser,
    plot,
    print_rows,
    rows_from,
    write_csv,
)
from peers import make_problem
from roof import load_roof

TABLE = ("case", "sampler", "classes", "threads", "median_ms", "p10_ms", "p90_ms", "growth")
TABLE += ("speedup", "share_of_roof", "extra_mib", "bound_mib")


def step_cases(
    shape: tuple[int, int, int], classes: list[int], sampler: str, threads: list[int], kind: Any
) -> list[Case]:
    """Our step at every class count, and at the largest one with every thread count."""
    batch, width, samples = shape
    cases = []
    for count in classes:
        problem = make_problem(batch, width, samples, count, torch.float32, sampler)
        step = our_step(problem, replacement=False)
        for used in threads if count == classes[-1] else threads[:1]:
            cases.append(
                Case(
                    f"ours, C={count:,}",
                    step,
                    role="ours",
                    work=6.0 * batch * width * samples,
                    roof_kind=kind,
                    threads=used,
                    columns={"classes": count, "isa": isa_in_use()},
                )
            )
    return cases


def add_ratios(rows: list[Row]) -> None:
    """growth: time over that of the smallest C; speedup: time of one thread over it. Both come from
    the paired ratios to the first case."""
    last = rows[-1]
    for row in rows:
        if row["threads"] == rows[0]["threads"]:
            row["growth"] = row["ratio"]
        if last["threads"] == 1 and row["classes"] == last["classes"] and row is not last:
            row["speedup"] = float(f"{last['ratio'] / row['ratio']:.4g}")


def draw_lines(axes: Any, rows: list[Row]) -> None:
    """Time against C, a line per sampler, from zero: flat is the point."""
    threads = rows[0]["threads"]
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        line = [r for r in rows if r["sampler"] == sampler and r["threads"] == threads]
        axes.plot([r["classes"] for r in line], [r["median_ms"] for r in line], "o-", label=sampler)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("classes")
    axes.set_ylabel("milliseconds per step")
    axes.set_title(
        f"Training step, B={rows[0]['batch']} D={rows[0]['width']} S={rows[0]['samples']}",
        fontsize=10,
    )
    axes.legend()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", metavar="B,D,S", type=arguments.shape, default=(512, 128, 4096))
    options.add_argument(
        "--classes", metavar="A,B", type=arguments.numbers, default=(10**5, 10**6, 10**7)
    )
    args = options.parse_args()
    shape, classes = args.shape, list(args.classes)
    if args.quick:
        shape, classes = (8, 16, 32), [100, 1000]
    torch.set_num_threads(args.threads)
    threads = [args.threads] + ([1] if args.threads > 1 else [])
    roof = load_roof()
    kind = roof.kind_for(isa_in_use()) if roof else None
    repetitions = args.repetitions or (2 if args.quick else 21)
    rows: list[Row] = []
    batch, width, samples = shape
    for sampler in ("log_uniform",) if args.quick else ("log_uniform", "uniform"):
        config = {"batch": batch, "width": width, "samples": samples, "sampler": sampler}
        cases = step_cases(shape, classes, sampler, threads, kind)
        group = rows_from(measure(cases, repetitions, roof), config)
        del cases  # and with it the weights, before the other processes make theirs
        add_ratios(group)
        for row in group:
            if row["threads"] == args.threads:
                memory = extra_memory(
                    "ours", batch, width, samples, row["classes"], args.threads, sampler
                )
                row.update({name: memory[name] for name in ("extra_mib", "bound_mib")})
        print_rows(f"B={batch} D={width} S={samples} float32, {sampler}", group, TABLE)
        rows += group
    constants = environment()
    write_csv(args.output / "bench_scale.csv", [{**row, **constants} for row in rows])
    plot(args.output / "bench_scale.png", lambda axes: draw_lines(axes, rows))


if __name__ == "__main__":
    main()

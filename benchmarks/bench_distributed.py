"""Classes over ranks: processor time and bytes of each rank, over the cost model.

Two tables:

    ranks      the same job on R processes over gloo, its batch divided among them
    crossover  fetch and gather for more and more samples, on the largest R

Timed is the processor time of a rank's forward and backward pass, one thread a rank, so that ranks
may share cores; waiting for others is not counted, what gloo copies is. `share` is that over the
time of one process with all classes; the model's is 1/R for fetch, whose three products are of the
rank's own rows, and 4/(3 R) for gather, which needs four. Bytes are what a rank hands to the
collectives (rank_traffic.py) over those of scale_out_model.py, which has the table to 1,024 ranks.
Wall time over gloo on one machine says nothing about a cluster, and isn't shown.

    python benchmarks/bench_distributed.py               ten minutes, most of them the peers
    python benchmarks/bench_distributed.py --only ranks --shape 4096,256,4096 --cases "ours, fetch"
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arguments
import numpy as np
import torch
from distributed_peers import CASES, Job, alone
from harness import Row, digits, draw_times, environment, parser, plot, print_rows, write_csv
from rank_traffic import counted
from scale_out_model import Step as Model
from torch import distributed, multiprocessing

TABLES = ("ranks", "crossover")
OURS = ("ours, fetch", "ours, gather")
COLUMNS = ("case", "ranks", "samples", "median_ms", "p10_ms", "p90_ms", "share", "model_share")
COLUMNS += ("sent", "sent_over_model")
ONE = "one process"
WARM = 2  # steps


def rank_process(
    rank: int, size: int, folder: str, jobs: Sequence[tuple[str, Job]], repetitions: int
) -> None:
    """Saves the processor seconds of each step, and the bytes that were sent, of each job."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    found = []
    with counted() as traffic:
        for case, job in jobs:
            step = alone(job) if case == ONE else CASES[case](job)
            for _ in range(WARM):
                step()
            traffic.clear()
            seconds = []
            for _ in range(repetitions):
                distributed.barrier()
                began = time.process_time()
                step()
                seconds.append(time.process_time() - began)
            found.append((seconds, traffic.total / repetitions))
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def run(size: int, jobs: Sequence[tuple[str, Job]], repetitions: int) -> list[Row]:
    """A row for each of the jobs, on `size` processes."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(rank_process, (size, folder, jobs, repetitions), nprocs=size)
        ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(size)]
    rows: list[Row] = []
    for at, (case, job) in enumerate(jobs):
        # The mean over ranks of each step: who has more to do in one step has less in another.
        seconds = np.array([of_rank[at][0] for of_rank in ranks]).mean(axis=0)
        low, median, high = np.quantile(seconds, (0.1, 0.5, 0.9))
        row: dict[str, Any] = {
            "case": case,
            "ranks": size,
            "samples": job.samples,
            "classes": job.classes,
            "width": job.width,
            "batch": job.batch,
            "median_ms": digits(1e3 * median),
            "p10_ms": digits(1e3 * low),
            "p90_ms": digits(1e3 * high),
        }
        if case in OURS:
            model = Model(job.classes, job.width, job.batch // size, job.samples, size, 4)
            fetch = case == "ours, fetch"
            expected = model.fetch if fetch else model.gather
            sent = float(np.mean([of_rank[at][1] for of_rank in ranks]))
            row["model_share"] = digits((1.0 if fetch else 4.0 / 3.0) / size)
            row["sent"] = round(sent)
            if size > 1:
                row["sent_over_model"] = digits(sent / expected)
        rows.append(row)
    return rows


def ranks_table(
    job: Job, sizes: Sequence[int], cases: Sequence[str], repetitions: int
) -> list[Row]:
    rows = run(1, [(ONE, job)], repetitions)
    base = float(rows[0]["median_ms"])
    for size in sizes:
        rows += run(size, [(case, job) for case in cases], repetitions)
    return [
        {"table": "ranks", **row, "share": digits(float(row["median_ms"]) / base)} for row in rows
    ]


def crossover_table(job: Job, size: int, samples: Sequence[int], repetitions: int) -> list[Row]:
    jobs = [
        (case, Job(job.classes, job.width, job.batch, count)) for count in samples for case in OURS
    ]
    return [{"table": "crossover", **row} for row in run(size, jobs, repetitions)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--ranks", type=arguments.numbers, default=(1, 2, 4))
    options.add_argument("--only", type=arguments.names(TABLES), default=TABLES)
    options.add_argument("--cases", type=arguments.names(CASES), default=tuple(CASES))
    options.add_argument("--classes", type=arguments.positive, default=100_000)
    options.add_argument("--shape", type=arguments.shape, default=(1024, 128, 4096), help="B,D,S")
    args = options.parse_args()
    batch, width, samples = args.shape
    job, repetitions = Job(args.classes, width, batch, samples), args.repetitions or 15
    series: Sequence[int] = (128, 512, 1024, 2048, 8192)
    sizes = args.ranks
    if args.quick:
        job, repetitions, series, sizes = Job(200, 8, 12, 24), 2, (8, 24), (1, 2)
    rows: list[Row] = []
    if "ranks" in args.only:
        rows += ranks_table(job, sizes, args.cases, repetitions)
        title = f"C={job.classes:,} D={job.width} S={job.samples}, {job.batch} rows on all ranks"
        print_rows(f"{title}: processor time of a rank", rows, COLUMNS)
    if "crossover" in args.only:
        found = crossover_table(job, max(sizes), series, repetitions)
        columns = ("case", "samples", "median_ms", "p10_ms", "p90_ms", "sent", "sent_over_model")
        title = f"{max(sizes)} ranks, {job.batch} rows on all of them"
        print_rows(f"{title}: fetch sends less while S + B < {job.batch}", found, columns)
        rows += found
    constants = {**environment(), "threads": 1}
    write_csv(args.output / "bench_distributed.csv", [{**row, **constants} for row in rows])
    of_ranks = [row for row in rows if row["table"] == "ranks"]
    if of_ranks:
        bars = [
            (f"{row['case']}, R={row['ranks']}", float(row["median_ms"]), row["case"] in OURS)
            for row in of_ranks
        ]
        height = 1.0 + 0.3 * len(bars)
        path = args.output / "bench_distributed.png"
        plot(path, lambda axes: draw_times(axes, bars), (8, height))


if __name__ == "__main__":
    main()

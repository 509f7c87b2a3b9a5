"""Optimizers on row-sparse gradients: the step alone, the whole training step, many classes.

Three tables:

    step      an optimizer's step on gradients of N distinct random rows of C, for widths and dtypes
    training  draw + forward + backward + optimizer at the headline shape
    classes   the step alone from 1e5 to 1e7 classes, rows drawn uniformly and log-uniformly

Byte model of the step: a row of the gradient is read, a row of the weight and of each state is read
and written. The roof is a loop that does this and nothing else (roof.cpp, `change_rows`), on the
same arrays, with the best prefetch found, measured around each timed block. Memory that has just
been used lies in the cache, where everything is faster: so all contenders and the roof take their
rows in turn from one random order of all C classes, and whoever comes next gets those that have
been untouched for the longest. States of ours are shared by our optimizers, of torch's they are
each its own; all have been written before anything is timed. With one thread, steps alone and
training steps are timed in CPU time, which other programs disturb less.

    python benchmarks/bench_optim.py                         all tables, some minutes, 12 GB
    python benchmarks/bench_optim.py --threads 1 --only step
    python benchmarks/bench_optim.py --only training         with TensorFlow where it is installed
"""

from __future__ import annotations

import functools
import itertools
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import arguments
import torch
from harness import (
    Case,
    Row,
    digits,
    draw_times,
    environment,
    measure,
    parser,
    plot,
    print_rows,
    rows_from,
    write_csv,
)
from optim_peers import (
    LR,
    OURS,
    TORCH,
    eager_loss,
    our_loss,
    tensorflow_training_step,
    touch_states,
    training_step,
)
from peers import Problem, make_problem, zipf_targets
from roof import Roof, load_roof

import sampled_softmax_cuda as ssc

TABLES = ("step", "training", "classes")
COLUMNS = ("case", "rows", "threads", "median_ms", "p10_ms", "p90_ms", "ratio", "share_of_roof")
COLUMNS += ("share_p90", "roof_gops", "over_loss", "growth", "failure")
ROWS = 4608  # B + S of the headline shape
ARRAY_BYTES = 1 << 30  # at most, of a weight: wider rows are of fewer classes
# Weight and states that a step reads and writes, by the first word of a name.
ARRAYS = {"SGD": 1, "RowWiseAdagrad": 1, "Adagrad": 2, "AdamW": 3, "SparseAdam": 3}
# Rows ahead, lines of each: which is best depends on the processor and on the rows.
PREFETCHES = ((0, 0), (4, 4), (4, 1 << 20), (8, 1 << 20))


class Steps:
    """A weight [C, D], states of our optimizers, and gradients of rows that take turns."""

    def __init__(
        self, classes: int, width: int, dtype: torch.dtype, ids: Sequence[torch.Tensor]
    ) -> None:
        torch.manual_seed(0)

        def array(of: torch.dtype) -> torch.Tensor:
            return ssc.prefer_huge_pages(torch.empty(classes, width, dtype=of)).fill_(0.01)

        self.weight = torch.nn.Parameter(array(dtype))
        self.first, self.second = array(torch.float32), array(torch.float32)
        self.ids = list(ids)
        self.values = 1e-2 * torch.randn(max(map(len, ids)), width).to(dtype)
        self.gradients = [
            torch.sparse_coo_tensor(
                rows[None],
                self.values[: len(rows)],
                self.weight.shape,
                is_coalesced=True,
                check_invariants=False,
            )
            for rows in self.ids
        ]
        self._turns = itertools.cycle(range(len(self.ids)))

    def step(self, make: Callable[[Any], torch.optim.Optimizer]) -> Callable[[], None]:
        """The step of an optimizer with the next gradient."""
        optimizer = make([self.weight])

        def run() -> None:
            self.weight.grad = self.gradients[next(self._turns)]
            optimizer.step()

        if type(optimizer).__module__.startswith(ssc.__name__):
            state = optimizer.state[self.weight]
            if optimizer.first_name is not None and "momentum" not in optimizer.defaults:
                state[optimizer.first_name] = self.first
            if optimizer.second_name is not None and not optimizer.rule.row_wise:
                state[optimizer.second_name] = self.second
        for _ in self.ids:  # every row has been there once
            run()
        touch_states(optimizer)
        return run

    @property
    def bytes_of(self) -> dict[int, int]:
        """Bytes of one step by the number of arrays."""
        rows = sum(map(len, self.ids)) / len(self.ids)
        weight, state = (t.stride(0) * t.element_size() for t in (self.weight, self.first))
        return {n: int(rows * (3 * weight + 2 * state * (n - 1))) for n in (1, 2, 3)}

    def arrays(self, count: int) -> list[torch.Tensor]:
        return [self.weight.detach(), self.second, self.first][:count]

    def next_rows(self) -> torch.Tensor:
        return self.ids[next(self._turns)]


class RowRoof:
    """Bytes per second of a read-modify-write of the next rows, in the form of `Roof.rate`; kind is
    the number of arrays."""

    def __init__(self, roof: Roof, steps: Steps) -> None:
        self.roof, self.steps = roof, steps
        self.best: dict[tuple[str, int], tuple[int, int]] = {}

    def _seconds(self, kind: str, threads: int, ahead: tuple[int, int], warm: float) -> float:
        steps = self.steps
        arrays, rows = steps.arrays(int(kind)), steps.next_rows()
        return self.roof.change_rows(arrays, steps.values, rows, threads, ahead, warm)

    def rate(self, kind: str, threads: int) -> float:
        if (kind, threads) not in self.best:
            times = {
                ahead: sorted(self._seconds(kind, threads, ahead, 8e-3) for _ in range(9))[4]
                for ahead in PREFETCHES
            }
            self.best[kind, threads] = min(times, key=times.__getitem__)
        ahead = self.best[kind, threads]
        times = [self._seconds(kind, threads, ahead, warm) for warm in (8e-3, 1e-3, 1e-3)]
        return self.steps.bytes_of[int(kind)] / sorted(times)[1]


def shuffled_rows(classes: int, rows: int) -> list[torch.Tensor]:
    """All classes in a random order, in sorted pieces of `rows`."""
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(0))
    return [piece.sort().values for piece in order.split(rows) if len(piece) == min(rows, classes)]


def drawn_rows(classes: int, rows: int, pieces: int) -> list[torch.Tensor]:
    """Rows as steps touch them: distinct log-uniform samples and their targets, sorted."""
    sampler, generator = ssc.LogUniformSampler(classes), torch.Generator().manual_seed(0)
    found = []
    for seed in range(pieces):
        target = zipf_targets(rows // 9, classes, seed)
        samples = sampler.sample(target, rows - len(target), replacement=False, generator=generator)
        found.append(torch.cat((samples.ids, target)).unique())
    return found


def clock_of(threads: int) -> Callable[[], float]:
    return time.process_time if threads == 1 else time.perf_counter


def step_cases(steps: Steps, makers: dict[str, Any], role: str, threads: int) -> list[Case]:
    cases = []
    for name, make in makers.items():
        arrays = ARRAYS[re.split("[ ,]", name.removeprefix("torch "))[0]]
        has_roof = role == "ours" or steps.weight.dtype == torch.float32  # torch's states follow it
        cases.append(
            Case(
                name,
                steps.step(make),
                role=role,
                work=steps.bytes_of[arrays],
                roof_kind=str(arrays) if has_roof else None,
                threads=threads,
                clock=clock_of(threads),
                columns={"rows": round(sum(map(len, steps.ids)) / len(steps.ids))},
            )
        )
    return cases


def rounded(makers: dict[str, Any]) -> dict[str, Any]:
    """The same optimizers with stochastic rounding."""
    return {
        f"{name}, stochastic rounding": functools.partial(make, rounding="stochastic")
        for name, make in makers.items()
    }


def step_table(args: Any, roof: Roof | None, repetitions: int) -> list[Row]:
    """The optimizers' steps alone; `ratio` is to our AdamW."""
    rows: list[Row] = []
    for width, dtype in itertools.product(args.widths, (torch.float32, torch.bfloat16)):
        classes = min(args.classes, ARRAY_BYTES // (4 * width))
        steps = Steps(classes, width, dtype, shuffled_rows(classes, args.rows))
        ours = rounded(OURS) if dtype == torch.bfloat16 else OURS
        cases = step_cases(steps, ours, "ours", args.threads)
        cases += step_cases(steps, TORCH, "peer", args.threads)
        base = next(name for name in ours if name.startswith("AdamW decay"))
        timings = measure(cases, repetitions, RowRoof(roof, steps) if roof else None)
        name = str(dtype).removeprefix("torch.")
        config = {"table": "step", "width": width, "classes": classes, "dtype": name}
        group = rows_from(timings, config, base)
        print_rows(
            f"step alone: {args.rows} rows of {classes:,}, D={width}, {name}", group, COLUMNS
        )
        rows += group
    return rows


def training_table(args: Any, repetitions: int) -> list[Row]:
    """Whole training steps, ours beside one kind of peers after the other, so that the states of
    all needn't be there at once; `ratio` is to ours with AdamW, `over_loss` the optimizer's time
    over that of the loss alone, both paired."""
    batch, width, samples = args.shape
    problem = make_problem(batch, width, samples, args.classes, torch.float32, "log_uniform")
    options: dict[str, Any] = {"threads": args.threads, "clock": clock_of(args.threads)}
    rows: list[Row] = []
    for peers in ("torch", "composed", "TensorFlow"):
        timings = measure(training_cases(problem, peers, options), repetitions)
        if peers == "TensorFlow":  # by itself: passes over all rows leave the others a cold cache
            adam = tensorflow_case(problem, "Adam", options)
            timings += measure([adam], min(repetitions, 7))
        config = {"table": "training", "batch": batch, "width": width, "samples": samples}
        config |= {"classes": args.classes, "dtype": "float32", "beside": peers}
        group = rows_from(timings, config, "ours, AdamW decay")
        for row, over in zip(group, rows_from(timings, {}, "ours, no optimizer"), strict=True):
            if row["case"].startswith("our") and row["role"] != "part":
                row["over_loss"] = digits(over["ratio"] - 1)
        shape = f"B={batch} D={width} S={samples} C={args.classes:,} float32"
        print_rows(f"training, ours and {peers}: {shape}", group, COLUMNS)
        rows += group
    return rows


def training_cases(problem: Problem, peers: str, options: dict[str, Any]) -> list[Case]:
    """Ours, and the peers of one kind."""
    cases = [Case("ours, no optimizer", training_step(problem, our_loss, None), "part", **options)]
    cases += [
        Case(f"ours, {name}", training_step(problem, our_loss, OURS[name]), "ours", **options)
        for name in ("SGD", "Adagrad", "AdamW decay")
    ]
    if peers == "TensorFlow":
        return [*cases, tensorflow_case(problem, "Adagrad", options)]
    title, loss = ("our loss", our_loss) if peers == "torch" else ("composed", eager_loss)
    return cases + [
        Case(f"{title}, {name}", training_step(problem, loss, make), **options)
        for name, make in TORCH.items()
    ]


def tensorflow_case(problem: Problem, name: str, options: dict[str, Any]) -> Case:
    try:
        run = tensorflow_training_step(problem, options["threads"], name)
    except ImportError as error:
        run = _raiser(error)
    return Case(f"TensorFlow, {name}", run, **options)


def _raiser(error: Exception) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


def classes_table(args: Any, roof: Roof | None, repetitions: int) -> list[Row]:
    """Our steps alone for growing C; `growth` is the median over that of the smallest C."""
    rows: list[Row] = []
    chosen = {name: OURS[name] for name in ("SGD", "Adagrad", "AdamW decay")}
    for drawn in ("log_uniform", "uniform"):
        firsts: dict[str, float] = {}
        for classes in args.class_counts:
            pieces = max(2, min(200, classes // args.rows))
            ids = (
                shuffled_rows(classes, args.rows)[:pieces]
                if drawn == "uniform"
                else drawn_rows(classes, args.rows, pieces)
            )
            steps = Steps(classes, args.scale_width, torch.float32, ids)
            cases = step_cases(steps, chosen, "ours", args.threads)
            timings = measure(cases, repetitions, RowRoof(roof, steps) if roof else None)
            config = {"table": "classes", "width": args.scale_width, "classes": classes}
            config |= {"dtype": "float32", "sampler": drawn}
            group = rows_from(timings, config, "AdamW decay")
            for row in group:
                per_row = row["median_ms"] / row["rows"]
                row["growth"] = digits(per_row / firsts.setdefault(row["case"], per_row))
            print_rows(f"C={classes:,}, rows {drawn}, D={args.scale_width}", group, COLUMNS)
            rows += group
    return rows


def draw_bars(axes: Any, rows: list[Row]) -> None:
    """Whole training steps, or else the first configuration of steps alone."""
    training = [row for row in rows if row["table"] == "training"]
    training = [r for r in training if r["role"] == "peer" or r["beside"] == "torch"]
    same = training or [
        row for row in rows if all(row[n] == rows[0][n] for n in ("table", "width", "dtype"))
    ]
    shown = sorted(
        (row for row in same if row["median_ms"] != ""), key=lambda row: -row["median_ms"]
    )
    draw_times(axes, [(row["case"], row["median_ms"], row["role"] != "peer") for row in shown])
    first = shown[0]
    what = "Training step" if training else "Optimizer's step"
    shape = f"B={first['batch']} S={first['samples']} " if training else ""
    axes.set_title(
        f"{what}, threads: {first['threads']}; {shape}D={first['width']} C={first['classes']:,}",
        fontsize=10,
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", type=arguments.names(TABLES), default=TABLES)
    options.add_argument("--shape", metavar="B,D,S", type=arguments.shape, default=(512, 256, 4096))
    options.add_argument("--classes", type=arguments.positive, default=1_000_000)
    options.add_argument("--widths", type=arguments.numbers, default=(64, 256, 1024))
    args = options.parse_args()
    args.rows, args.class_counts, args.scale_width = ROWS, (10**5, 10**6, 10**7), 64
    if args.quick:
        args.shape, args.classes, args.widths = (8, 32, 64), 2000, (32,)
        args.rows, args.class_counts, args.scale_width = 72, (500, 2000), 32
    torch.set_num_threads(args.threads)
    roof = load_roof()
    repetitions = args.repetitions or (2 if args.quick else 21)
    rows: list[Row] = []
    if "step" in args.only:
        rows += step_table(args, roof, repetitions)
    if "training" in args.only:
        rows += training_table(args, repetitions)
    if "classes" in args.only:
        rows += classes_table(args, roof, repetitions)
    constants = {"lr": LR, **environment()}
    write_csv(args.output / "bench_optim.csv", [{**row, **constants} for row in rows])
    plot(args.output / "bench_optim.png", lambda axes: draw_bars(axes, rows), size=(8, 5.5))


if __name__ == "__main__":
    main()

"""Speed of the draws: each sampler beside those of PyTorch, NumPy, SciPy and TensorFlow.

For every sampler a training step's draw, S of C classes with everything that the loss needs (ids
and the log expected counts of samples and targets), with and without replacement, against what
offers the same (sample_peers.py; TensorFlow's candidate samplers where it is installed); `ratio` is
relative to ours. Then: building the alias table of 10^7 weights; a StreamingSampler's update; and
the throughput of long draws on one thread and on all of them, as a share of what Philox alone
gives. Byte model of a draw: 8 bytes written per id; the weighted sampler also reads one random
entry of its table. Of a build: 8 bytes read and 16 written per class, three times over.

    python benchmarks/bench_sample.py
    python benchmarks/bench_sample.py --classes 100000 --samples 1024
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sample_peers
import torch
from arguments import positive
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
from peers import zipf_targets
from roof import Roof, load_roof

import sampled_softmax_cuda as ssc

TABLE = (
    "case",
    "threads",
    "isa",
    "median_ms",
    "p10_ms",
    "p90_ms",
    "ratio",
    "items_per_us",
    "share_of_roof",
    "failure",
)


def basic_samplers(classes: int) -> dict[str, ssc.Sampler]:
    return {
        "uniform": ssc.UniformSampler(classes),
        "log-uniform": ssc.LogUniformSampler(classes),
        "weighted": ssc.WeightedSampler(sample_peers.zipf_weights(classes)),
    }


def samplers(classes: int, samples: int) -> dict[str, ssc.Sampler]:
    """Every sampler; the ones that learn do so in each draw."""
    basic = basic_samplers(classes)
    streaming = ssc.StreamingSampler(classes, update_on_sample=True)
    return {
        **basic,
        "streaming": streaming,
        "mixed": ssc.MixedSampler([basic["uniform"], basic["weighted"]]),
        "in-batch": ssc.InBatchSampler(),
        "queue": ssc.QueueSampler(samples),
    }


def peers(
    name: str, classes: int, samples: int, target: torch.Tensor, replacement: bool, threads: int
) -> list[Case]:
    """The contenders of our sampler `name`."""
    cases: list[Case] = []
    if name in ("uniform", "log-uniform", "weighted"):
        make = {
            "uniform": sample_peers.uniform,
            "log-uniform": sample_peers.log_uniform,
            "weighted": sample_peers.weighted,
        }[name]
        cases = make(classes, samples, replacement)
    elif name == "mixed" and replacement:
        cases = sample_peers.mixed(classes, samples, target)
    elif name == "in-batch" and replacement:
        cases = sample_peers.in_batch(target)
    if name in ("uniform", "log-uniform", "weighted", "streaming"):
        cases += sample_peers.tensorflow(name, classes, samples, target, replacement, threads)
    return cases


def step_draws(
    classes: int, samples: int, batch: int, replacement: bool, threads: int
) -> list[tuple[str, list[Case]]]:
    """`sampler.sample` whole, as a training step calls it, and its peers, by sampler."""
    target = zipf_targets(batch, classes)

    def draw(sampler: ssc.Sampler) -> Callable[[], object]:
        return lambda: sampler.sample(target, samples, replacement=replacement)

    return [
        (
            name,
            [
                Case(f"ours: {name}", draw(sampler), role="ours"),
                *peers(name, classes, samples, target, replacement, threads),
            ],
        )
        for name, sampler in samplers(classes, samples).items()
    ]


def builds(classes: int) -> list[Case]:
    """A WeightedSampler from float64 weights, and new weights for one that is there."""
    weights = sample_peers.zipf_weights(classes) * torch.rand(classes, dtype=torch.float64)
    sampler = ssc.WeightedSampler(weights)
    return [
        Case("ours: WeightedSampler(weights)", lambda: ssc.WeightedSampler(weights), role="ours"),
        Case("ours: update(weights)", lambda: sampler.update(weights), role="ours"),
        *sample_peers.build(weights),
    ]


def updates(classes: int, batch: int) -> list[Case]:
    """The time of a StreamingSampler's `update` per batch, building its table included."""
    target = zipf_targets(batch, classes)
    cases = []
    for mode in ("counts", "interval"):
        sampler = ssc.StreamingSampler(classes, mode=mode)
        cases.append(Case(f"ours: {mode}", lambda s=sampler: s.update(target), role="ours"))
    counts = torch.ones(classes, dtype=torch.int64)
    ones = torch.ones_like(target)
    cases.append(Case("torch index_add_ alone", lambda: counts.index_add_(0, target, ones)))
    return cases


def long_draws(
    classes: int, samples: int, threads: tuple[int, ...], roof: Roof | None
) -> list[Case]:
    """Throughput: one long draw with replacement, per sampler, thread count. The roof is the speed
    of the random bits alone: one 64-bit number per id."""
    kind = "philox_" + roof.kind_for(isa_in_use()) if roof else None
    target = torch.zeros(1, dtype=torch.int64)
    cases = []
    for count in reversed(threads):
        for name, sampler in basic_samplers(classes).items():

            def draw(sampler: Any = sampler) -> object:
                return sampler.sample(target, samples, replacement=True)

            cases.append(
                Case(
                    f"ours: {name}",
                    draw,
                    role="ours",
                    threads=count,
                    work=float(samples),
                    roof_kind=kind,
                )
            )
    for count in threads:
        cases.append(
            Case("torch.randint", lambda: torch.randint(classes, (samples,)), threads=count)
        )
    return cases


def run_table(
    title: str, cases: list[Case], config: Row, repetitions: int, roof: Roof | None
) -> list[Row]:
    """Measures, adds items per microsecond (millions per second), prints. Ratios are relative to
    the first case."""
    rows = rows_from(measure(cases, repetitions, roof), {"table": title, **config}, cases[0].name)
    for row in rows:
        if row["median_ms"] == "":
            continue
        row["isa"] = isa_in_use() if row["role"] == "ours" else ""
        row["items_per_us"] = float(f"{config['items'] / row['median_ms'] / 1e3:.4g}")
    print_rows(title, rows, TABLE)
    return rows


def draw_bars(axes: Any, rows: list[Row]) -> None:
    """Milliseconds of a step's draw with replacement, each sampler beside its peers."""
    shown = [r for r in rows if r["sampler"] and r["replacement"] is True and r["median_ms"] != ""]
    bars = []
    for row in reversed(shown):
        label = row["case"] if row["role"] == "ours" else f"{row['sampler']}: {row['case']}"
        bars.append((label, row["median_ms"], row["role"] == "ours"))
    draw_times(axes, bars)
    axes.set_title(f"A step's draw: {shown[0]['samples']} of {shown[0]['classes']}", fontsize=10)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--classes", type=positive, default=1_000_000, help="C")
    options.add_argument("--samples", type=positive, default=8192, help="S of a step's draw")
    options.add_argument("--batch", type=positive, default=512, help="targets of a step")
    options.add_argument(
        "--build", type=positive, default=10_000_000, help="C of the alias tables built"
    )
    options.add_argument("--long", type=positive, default=1 << 18, help="ids of a long draw")
    args = options.parse_args()
    classes, samples, length, table = args.classes, args.samples, args.long, args.build
    if args.quick:
        classes, samples, length, table = 1000, 64, 4096, 5000
    torch.set_num_threads(args.threads)
    repetitions = args.repetitions or (2 if args.quick else 21)
    roof = load_roof()
    rows: list[Row] = []
    for replacement in (True, False):
        kind = "with" if replacement else "without"
        for name, cases in step_draws(classes, samples, args.batch, replacement, args.threads):
            config: Row = {"sampler": name, "classes": classes, "samples": samples}
            config |= {"replacement": replacement, "items": samples}
            title = f"A step's draw, {name}: {samples} of {classes}, {kind} replacement"
            rows += run_table(title, cases, config, repetitions, roof)
    for title, cases, config in (
        (f"A table of {table} weights", builds(table), {"classes": table, "items": table}),
        (
            f"An update with {args.batch} targets of {classes}",
            updates(classes, args.batch),
            {"classes": classes, "items": args.batch},
        ),
        (
            f"Throughput: {length} of {classes}, with replacement",
            long_draws(classes, length, tuple(sorted({1, args.threads})), roof),
            {"classes": classes, "samples": length, "items": length},
        ),
    ):
        common = {"sampler": "", "samples": "", "replacement": ""}
        rows += run_table(title, cases, {**common, **config}, repetitions, roof)
    constants = environment()
    write_csv(args.output / "bench_sample.csv", [{**row, **constants} for row in rows])
    plot(args.output / "bench_sample.png", lambda axes: draw_bars(axes, rows), size=(8, 8))


if __name__ == "__main__":
    main()

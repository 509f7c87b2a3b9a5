"""Speed of the draws: ids per second of each sampler, beside what PyTorch and NumPy offer.

Two tables. The first is a training step's draw, S of C classes with everything that the loss needs
(ids and the log expected counts of samples and targets), against `torch.multinomial` and NumPy's
`Generator.choice` on the same probabilities, which give ids alone. The second is the throughput of
long draws on one thread and on all of them, as a share of what Philox alone gives. Byte model of a
draw: 8 bytes written per id; the weighted sampler also reads one random entry of its table.

    python benchmarks/bench_sample.py
    python benchmarks/bench_sample.py --classes 100000 --samples 1024
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
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
    "ids_per_us",
    "share_of_roof",
    "failure",
)


def zipf_weights(classes: int) -> torch.Tensor:
    """The log-uniform probabilities as float64 weights [C]."""
    ids = torch.arange(classes, dtype=torch.float64)
    return torch.log1p(1.0 / (ids + 1)) / math.log1p(classes)


def samplers(classes: int) -> dict[str, Any]:
    return {
        "uniform": ssc.UniformSampler(classes),
        "log-uniform": ssc.LogUniformSampler(classes),
        "weighted": ssc.WeightedSampler(zipf_weights(classes)),
    }


def our_draws(classes: int, samples: int, batch: int, replacement: bool) -> list[Case]:
    """`sampler.sample` whole, as a training step calls it, for the three samplers."""
    target = zipf_targets(batch, classes)

    def draw(sampler: Any) -> Callable[[], object]:
        return lambda: sampler.sample(target, samples, replacement=replacement)

    return [
        Case(f"ours: {name}", draw(sampler), role="ours")
        for name, sampler in samplers(classes).items()
    ]


def peer_draws(classes: int, samples: int, replacement: bool) -> list[Case]:
    """The same number of ids by the means at hand; NumPy's uniform draw has a path of its own."""
    weights = zipf_weights(classes)
    weights32 = weights.float()
    p = weights.numpy() / weights.numpy().sum()
    generator = numpy.random.default_rng(0)
    scale = math.log1p(classes)
    cases = [
        Case(
            "torch.multinomial",
            lambda: torch.multinomial(weights32, samples, replacement=replacement),
            max_repetitions=7,
        ),
        Case(
            "numpy choice, weighted",
            lambda: generator.choice(classes, samples, replace=replacement, p=p),
            max_repetitions=7,
        ),
        Case(
            "numpy choice, uniform",
            lambda: generator.choice(classes, samples, replace=replacement),
            max_repetitions=7,
        ),
    ]
    if replacement:
        cases += [
            Case("torch.randint (uniform)", lambda: torch.randint(classes, (samples,))),
            Case(
                "torch.rand, expm1 (log-uniform)",
                lambda: torch.expm1(torch.rand(samples, dtype=torch.float64) * scale).long(),
            ),
        ]
    return cases


def long_draws(
    classes: int, samples: int, threads: tuple[int, ...], roof: Roof | None
) -> list[Case]:
    """Throughput: one long draw with replacement, per sampler, thread count. The roof is the speed
    of the random bits alone: one 64-bit number per id."""
    kind = "philox_" + roof.kind_for(isa_in_use()) if roof else None
    target = torch.zeros(1, dtype=torch.int64)
    cases = []
    for count in threads:
        for name, sampler in samplers(classes).items():

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
    title: str,
    cases: list[Case],
    config: Row,
    repetitions: int,
    roof: Roof | None,
    base: str = "",
) -> list[Row]:
    """Measures, adds ids per microsecond (millions per second), prints. The ratios are relative to
    the case named `base`."""
    rows = rows_from(measure(cases, repetitions, roof), {"table": title, **config}, base)
    for row in rows:
        if row["median_ms"] == "":
            continue
        row["isa"] = isa_in_use() if row["role"] == "ours" else ""
        row["ids_per_us"] = float(f"{config['samples'] / row['median_ms'] / 1e3:.4g}")
    print_rows(title, rows, TABLE)
    return rows


def draw_bars(axes: Any, rows: list[Row]) -> None:
    """Milliseconds of a step's draw with replacement."""
    shown = [row for row in rows if row["table"] == rows[0]["table"] and row["median_ms"] != ""]
    shown.sort(key=lambda row: -row["median_ms"])
    draw_times(axes, [(row["case"], row["median_ms"], row["role"] == "ours") for row in shown])
    axes.set_title(rows[0]["table"], fontsize=10)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--classes", type=int, default=1_000_000, help="C")
    options.add_argument("--samples", type=int, default=8192, help="S of a step's draw")
    options.add_argument("--batch", type=int, default=512, help="targets of a step")
    options.add_argument("--long", type=int, default=1 << 18, help="ids of a long draw")
    args = options.parse_args()
    classes, samples, length = args.classes, args.samples, args.long
    if args.quick:
        classes, samples, length = 1000, 64, 4096
    torch.set_num_threads(args.threads)
    repetitions = args.repetitions or (2 if args.quick else 21)
    roof = load_roof()
    rows: list[Row] = []
    for replacement in (True, False):
        kind = "with" if replacement else "without"
        cases = our_draws(classes, samples, args.batch, replacement)
        cases += peer_draws(classes, samples, replacement)
        config = {"classes": classes, "samples": samples, "replacement": replacement}
        title = f"A step's draw: {samples} of {classes}, {kind} replacement"
        rows += run_table(title, cases, config, repetitions, roof, base="ours: weighted")
    threads = tuple(sorted({1, args.threads}))
    config = {"classes": classes, "samples": length, "replacement": True}
    title = f"Throughput: {length} of {classes}, with replacement"
    cases = long_draws(classes, length, threads, roof)
    rows += run_table(title, cases, config, repetitions, roof)
    constants = environment()
    write_csv(args.output / "bench_sample.csv", [{**row, **constants} for row in rows])
    plot(args.output / "bench_sample.png", lambda axes: draw_bars(axes, rows))


if __name__ == "__main__":
    main()

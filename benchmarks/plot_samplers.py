"""Plot how proposals estimate the softmax's denominator: q, bias and spread of each.

A model of one row: C = 5000 classes of which Zipf's law gives the frequencies f_k, and logits
z_k = log f_k + noise, as a model has that knows the frequencies and something about the row. Each
proposal draws S = 200 negatives (for the in-batch ones: the targets of 200 other rows, drawn from
f), and estimates the sum of exp(z_k) over all classes but the row's own target by

    sum over samples s that are not the target of exp(z_s) / n_s

The script repeats that with fixed keys, and prints the mean error (bias, with its standard error)
and the standard deviation, relative to the true sum. It draws q of every proposal and both numbers.
About half a minute; the same numbers at every run.

    python benchmarks/plot_samplers.py --output benchmarks/results
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import torch
from harness import Row, digits, environment, parser, print_rows, write_csv

import sampled_softmax_cuda as ssc

CLASSES, SAMPLES, OWN_TARGET = 5000, 200, 10
COLORS = ("#8d99ae", "#d1495b", "#edae49", "#00798c", "#6a4c93", "#30638e", "#2e933c", "#b5651d")


def frequencies() -> torch.Tensor:
    """f, float64 [C]: Zipf's law."""
    f = torch.arange(1, CLASSES + 1, dtype=torch.float64) ** -1.0
    return f / f.sum()


def logits(f: torch.Tensor) -> torch.Tensor:
    """z of one row, float64 [C]."""
    noise = torch.randn(CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return f.log() + noise


class Proposal:
    """A sampler under its name in the plot, how it is drawn from, and its expected counts."""

    def __init__(
        self,
        name: str,
        sampler: ssc.Sampler,
        *,
        replacement: bool = True,
        in_batch: bool = False,
        batch: int = SAMPLES + 1,
    ) -> None:
        self.name, self.sampler = name, sampler
        self.replacement, self.in_batch, self.batch = replacement, in_batch, batch

    def q(self) -> numpy.ndarray | None:
        """The expected count of each class in a draw, over S; None if it exists in no formula."""
        try:
            log_n = self.sampler.log_expected_count(
                torch.arange(CLASSES), SAMPLES, replacement=self.replacement
            )
        except ValueError:
            return None
        return log_n.double().exp().numpy() / SAMPLES

    def estimate(
        self, mass: torch.Tensor, targets: Callable[[int], torch.Tensor], generator: torch.Generator
    ) -> float:
        """One estimate of the sum of mass over all classes but OWN_TARGET, relative to it."""
        target = torch.tensor([OWN_TARGET])
        if self.in_batch:
            target = torch.cat((target, targets(self.batch - 1)))
        drawn = self.sampler.sample(
            target,
            self.batch if self.in_batch else SAMPLES,
            replacement=self.replacement,
            generator=generator,
        )
        assert drawn.log_expected_count is not None
        terms = mass[drawn.ids] / drawn.log_expected_count.double().exp()
        return float(terms[drawn.ids != OWN_TARGET].sum() / (mass.sum() - mass[OWN_TARGET]))


def proposals(f: torch.Tensor) -> list[Proposal]:
    known = ssc.WeightedSampler(f)
    uniform, streaming = ssc.UniformSampler(CLASSES), ssc.StreamingSampler(CLASSES)
    streaming.update(known.draw(torch.tensor([7, 0]), 20_000)[0])
    queue = ssc.QueueSampler(20_000)
    queue.update(known.draw(torch.tensor([8, 0]), 20_000)[0])
    queue.eval()
    return [
        Proposal("uniform", uniform),
        Proposal("log-uniform", ssc.LogUniformSampler(CLASSES)),
        Proposal("log-uniform, distinct", ssc.LogUniformSampler(CLASSES), replacement=False),
        Proposal("weighted, counts^0.75", ssc.WeightedSampler(f, power=0.75)),
        Proposal("streaming, 20,000 targets", streaming),
        Proposal(
            "mixed, log-uniform + uniform",
            ssc.MixedSampler([ssc.LogUniformSampler(CLASSES), uniform]),
        ),
        Proposal("in-batch, q known", ssc.InBatchSampler(known), in_batch=True),
        Proposal("in-batch, own counts", ssc.InBatchSampler(), in_batch=True),
        Proposal("queue of 20,000, own counts", queue, in_batch=True),
    ]


def measure(proposal: Proposal, mass: torch.Tensor, f: torch.Tensor, repetitions: int) -> Row:
    generator = torch.Generator().manual_seed(2)
    source = ssc.WeightedSampler(f)

    def targets(count: int) -> torch.Tensor:
        return source.sample(torch.tensor([0]), count, generator=generator).ids

    estimates = numpy.array(
        [proposal.estimate(mass, targets, generator) for _ in range(repetitions)]
    )
    spread = float(estimates.std())
    return {
        "proposal": proposal.name,
        "bias": digits(float(estimates.mean()) - 1),
        "standard_error": digits(spread / math.sqrt(repetitions)),
        "deviation": digits(spread),
    }


def draw(path: Any, curves: list[tuple[str, numpy.ndarray]], rows: list[Row]) -> None:
    """The plot: q on the left; bias and deviation on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(
        1, 3, figsize=(13, 4.6), width_ratios=(1.2, 1.3, 0.9)
    )
    rank = numpy.arange(1, CLASSES + 1)
    for (name, q), color in zip(curves, COLORS, strict=False):
        behind = name.startswith("streaming")  # a noisy line that would cover the others
        left.loglog(
            rank,
            q,
            label=name,
            color=color,
            linewidth=0.5 if behind else 1.4,
            zorder=1 + (not behind),
        )
    left.set_xlabel("class, by falling frequency")
    left.set_title(f"expected share of the samples, C={CLASSES}, S={SAMPLES}", fontsize=10)
    left.legend(fontsize=8, frameon=False)
    names = [row["proposal"] for row in rows][::-1]
    for axes, column, title in (
        (middle, "bias", "bias of the estimated denominator, ± 3 standard errors"),
        (right, "deviation", "its standard deviation"),
    ):
        values = numpy.array([row[column] for row in rows][::-1], dtype=float)
        errors = [3 * row["standard_error"] for row in rows][::-1] if column == "bias" else None
        axes.barh(names, values, xerr=errors, color="#30638e", ecolor="#1b1b1b", capsize=2)
        axes.axvline(0, color="#1b1b1b", linewidth=0.8)
        axes.set_title(title, fontsize=10)
        if column == "bias":
            axes.set_xscale("symlog", linthresh=0.01)
            axes.set_xticks([-0.5, -0.05, -0.01, 0, 0.01])
        axes.xaxis.set_major_formatter("{x:.0%}")
    middle.tick_params(axis="y", labelsize=8)
    right.set_yticklabels([])
    for axes in (left, middle, right):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    print(f"wrote {path}")


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    repetitions = args.repetitions or (200 if args.quick else 4000)
    f = frequencies()
    mass = logits(f).exp()
    chosen = proposals(f)
    rows = [measure(proposal, mass, f, repetitions) for proposal in chosen]
    print_rows(
        f"The estimated denominator, {repetitions} draws of {SAMPLES} of {CLASSES} classes",
        rows,
        ("proposal", "bias", "standard_error", "deviation"),
    )
    constants = {"repetitions": repetitions, **environment()}
    write_csv(args.output / "plot_samplers.csv", [{**row, **constants} for row in rows])
    curves = [(p.name, q) for p in chosen if (q := p.q()) is not None]
    draw(args.output / "plot_samplers.png", curves, rows)


if __name__ == "__main__":
    main()

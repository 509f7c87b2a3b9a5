"""Plot what rows without gradient do: dense Adam, and `skipped` = "freeze", "decay", "replay".

One weight that is pulled towards 1 by the gradient w - 1, which it has in 4 % of the steps, at
random; in the other steps it has none. The dense optimizer, torch.optim.AdamW, gets zeros there. On
the left is the weight as a reader finds it who lets it catch up first (`optimizer.settle`), on the
right as it lies in memory. Some seconds; the same picture at every run.

    python benchmarks/plot_skipped.py --output benchmarks/results
"""

from __future__ import annotations

from typing import Any

import torch
from harness import Row, digits, environment, parser, print_rows, write_csv

import sampled_softmax_cuda as ssc

STEPS, SHARE, RATE, DECAY = 400, 0.04, 0.02, 0.1
WAYS = ("freeze", "decay", "replay")
COLORS = {"dense": "#1b1b1b", "freeze": "#30638e", "decay": "#edae49", "replay": "#d1495b"}


def touched(steps: int) -> list[bool]:
    """The steps in which the row has a gradient."""
    return (torch.rand(steps, generator=torch.Generator().manual_seed(4)) < SHARE).tolist()


def dense(steps: int) -> list[float]:
    """The weight after each step of torch.optim.AdamW."""
    w = torch.nn.Parameter(torch.zeros(1, 1))
    optimizer = torch.optim.AdamW([w], RATE, weight_decay=DECAY)
    found = []
    for now in touched(steps):
        w.grad = w.detach() - 1 if now else torch.zeros_like(w)
        optimizer.step()
        found.append(w.item())
    return found


def skipping(how: str, steps: int, settle: bool) -> list[float]:
    """The same with a gradient of the rows touched alone: of row 0, or else of row 1."""
    w = torch.nn.Parameter(torch.zeros(2, 1))
    optimizer = ssc.optim.AdamW([w], RATE, weight_decay=DECAY, skipped=how)
    found = []
    for now in touched(steps):
        row = torch.tensor([[0 if now else 1]])
        if how == "replay":
            optimizer.settle(row)  # it is read
        values = w.detach()[row[0]] - 1
        w.grad = torch.sparse_coo_tensor(row, values, w.shape, check_invariants=False)
        optimizer.step()
        if settle:
            optimizer.settle()
        found.append(w[0].item())
    return found


def draw(path: Any, settled: dict[str, list[float]], stored: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axes, curves, title in zip(
        panels,
        (settled, stored),
        ("the weight, once it has caught up", "the weight as it lies in memory"),
        strict=True,
    ):
        for name, values in curves.items():
            label = "dense AdamW" if name == "dense" else f'skipped="{name}"'
            axes.plot(
                values,
                color=COLORS[name],
                linewidth=4 if name == "dense" else 1.6,
                alpha=0.35 if name == "dense" else 1,
                label=label,
            )
        for step, now in enumerate(touched(len(values))):
            if now:
                axes.axvline(step, color="#8d99ae", linewidth=0.5, zorder=0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step (lines: those in which the row has a gradient)")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    print(f"wrote {path}")


def main() -> None:
    args = parser(__doc__).parse_args()
    steps = 40 if args.quick else STEPS
    settled = {"dense": dense(steps)} | {way: skipping(way, steps, True) for way in WAYS}
    stored = {"dense": settled["dense"]} | {way: skipping(way, steps, False) for way in WAYS}
    rows: list[Row] = [
        {
            "way": way,
            "steps": steps,
            "touched": sum(touched(steps)),
            "last": digits(values[-1]),
            "largest_difference": digits(
                max(abs(a - b) for a, b in zip(values, settled["dense"], strict=True))
            ),
        }
        for way, values in settled.items()
    ]
    print_rows("One rare row", rows, ("way", "touched", "last", "largest_difference"))
    constants = environment()
    write_csv(args.output / "plot_skipped.csv", [{**row, **constants} for row in rows])
    draw(args.output / "plot_skipped.png", settled, stored)


if __name__ == "__main__":
    main()

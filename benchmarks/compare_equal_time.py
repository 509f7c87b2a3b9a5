"""The perplexity at equal time of the demo's model with ssc.optim.Adagrad and with torch's.

The language model of the demo (examples/code_lm.py) is trained with its embedding and its class
matrix updated by one Adagrad or the other. Both see the same batches and initial values and get the
same CPU time, optimizer's steps included, in turns of half a second, so that whatever slows one
slows the other. Rates fall to zero over that time. What is compared is the exact perplexity on
held-out files, at the shares of the time that the demo takes, and the steps that were made.

    python benchmarks/compare_equal_time.py                      3 seeds, 60 s for each
    python benchmarks/compare_equal_time.py --seconds 300 --seeds 1
"""

from __future__ import annotations

import bisect
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import arguments
import torch
from harness import Row, digits, environment, parser, print_rows, write_csv

import sampled_softmax_cuda as ssc

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.append(str(EXAMPLES))

from code_corpus import Corpus, load_corpus  # noqa: E402
from code_train import Settings, Trainer  # noqa: E402

WAYS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "ssc.optim.Adagrad": ssc.optim.Adagrad,
    "torch.optim.Adagrad": torch.optim.Adagrad,
}
EVALUATIONS = (0.25, 0.5, 0.75, 1.0)  # shares of the time
WARM_UP = 20  # steps in which the rate rises
TURN = 0.5  # seconds


class Run:
    """One way to train, its clock and its perplexities."""

    def __init__(self, way: str, corpus: Corpus, settings: Settings) -> None:
        self.way, self.settings = way, settings
        self.trainer = Trainer("sampled", corpus, settings, WAYS[way])
        self.steps, self.seconds = 0, 0.0
        self.perplexities: list[float] = []

    @property
    def share(self) -> float:
        return min(self.seconds / self.settings.seconds, 1.0)

    def take_turn(self) -> None:
        end = self.seconds + TURN
        while self.seconds < end and self.share < 1.0:
            began = time.process_time()
            self.trainer.step(rate=min(1.0, (self.steps + 1) / WARM_UP) * (1.0 - self.share))
            self.seconds += time.process_time() - began
            self.steps += 1
        due = bisect.bisect_right(EVALUATIONS, self.share) - len(self.perplexities)
        if due > 0:
            self.perplexities += due * [self.trainer.perplexity()]


def compare(corpus: Corpus, settings: Settings) -> list[Row]:
    runs = [Run(way, corpus, settings) for way in WAYS]
    while any(run.share < 1.0 for run in runs):
        for run in runs:
            run.take_turn()
    return [
        {
            "optimizer": run.way,
            "seed": settings.seed,
            "classes": corpus.num_classes,
            "cpu_seconds": digits(settings.seconds * share),
            "steps": run.steps if share == 1.0 else "",
            "ms_per_step": digits(1e3 * run.seconds / run.steps) if share == 1.0 else "",
            "perplexity": digits(perplexity),
        }
        for run in runs
        for share, perplexity in zip(EVALUATIONS, run.perplexities, strict=True)
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=60.0, help="CPU time for each way")
    options.add_argument("--seeds", type=arguments.positive, default=3)
    options.add_argument("--classes", type=arguments.positive, help="the most frequent ones only")
    options.add_argument("--text", type=Path, help="a folder of text files")
    options.add_argument("--cache", type=Path, default=EXAMPLES.parent / ".cache")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    settings = Settings(seconds=args.seconds)
    if args.quick:
        settings = replace(settings, seconds=0.2, windows=2, num_samples=32, width=16, hidden=16)
        settings = replace(settings, held_out_windows=2)
    corpus = load_corpus(args.text, args.classes, args.cache)
    rows: list[Row] = []
    for seed in range(args.seeds):
        rows += compare(corpus, replace(settings, seed=seed))
        print_rows("so far", rows, ("optimizer", "seed", "cpu_seconds", "steps", "perplexity"))
    constants = {"threads": args.threads, **environment()}
    write_csv(args.output / "compare_equal_time.csv", [{**row, **constants} for row in rows])


if __name__ == "__main__":
    main()

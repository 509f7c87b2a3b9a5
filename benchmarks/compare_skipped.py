"""The perplexity that rows without gradient cost: "freeze", "decay", "replay" and dense AdamW.

The language model of the demo (examples/code_lm.py) is trained for the same number of steps, on the
same batches and from the same initial values, with its embedding and its class matrix updated by
AdamW in each way; "dense" is torch.optim.AdamW on the same gradients made dense. What is compared
is the exact perplexity on held-out files. Times are CPU time per step with the optimizer, without
evaluations, and say little on a machine that others use.

    python benchmarks/compare_skipped.py
    python benchmarks/compare_skipped.py --steps 3000 --seeds 3
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import arguments
import torch
from harness import Row, digits, environment, parser, print_rows, write_csv

import sampled_softmax_cuda as ssc

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.append(str(EXAMPLES))

from code_corpus import Corpus, load_corpus  # noqa: E402
from code_train import Settings, Trainer  # noqa: E402

WARM_UP = 50  # steps in which the rate rises


class DenseAdamW(torch.optim.AdamW):
    """torch.optim.AdamW on gradients that it makes dense."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad = p.grad.to_dense()
        return super().step(closure)


def skipping(how: str) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters, lr: ssc.optim.AdamW(parameters, lr, skipped=how)


WAYS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "freeze": skipping("freeze"),
    "decay": skipping("decay"),
    "replay": skipping("replay"),
    "dense": DenseAdamW,
}


def train(way: str, corpus: Corpus, settings: Settings, steps: int) -> tuple[float, float]:
    """Perplexity in the end, and CPU seconds per step."""
    trainer = Trainer("sampled", corpus, settings, WAYS[way])
    tables = trainer.optimizers[0]
    if isinstance(tables, ssc.optim.AdamW):  # the head settles its rows by itself

        def settle(embedding: torch.nn.Module, ids: tuple[torch.Tensor]) -> None:
            tables.settle_parameter(embedding.weight, *ids)

        trainer.model.embedding.register_forward_pre_hook(settle)
    began = time.process_time()
    for step in range(steps):
        trainer.step(rate=min(1.0, (step + 1) / WARM_UP) * (1.0 - step / steps))
    seconds = (time.process_time() - began) / steps
    return trainer.perplexity(), seconds


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=arguments.positive, default=1000)
    options.add_argument("--seeds", type=arguments.positive, default=1)
    options.add_argument("--classes", type=arguments.positive, help="the most frequent ones only")
    options.add_argument("--text", type=Path, help="a folder of text files")
    options.add_argument("--cache", type=Path, default=EXAMPLES.parent / ".cache")
    options.add_argument("--ways", type=arguments.names(WAYS), default=tuple(WAYS))
    options.add_argument("--rate", type=float, default=2e-3, help="AdamW's")
    options.add_argument("--windows", type=arguments.positive, default=16)
    options.add_argument("--num-samples", type=arguments.positive, default=2048)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    settings = Settings(windows=args.windows, num_samples=args.num_samples, table_rate=args.rate)
    steps = args.steps
    if args.quick:
        settings = replace(settings, windows=2, num_samples=32, width=16, hidden=16)
        settings, steps = replace(settings, held_out_windows=2), 5
    corpus = load_corpus(args.text, args.classes, args.cache)
    rows: list[Row] = []
    for seed in range(args.seeds):
        for way in args.ways:
            perplexity, seconds = train(way, corpus, replace(settings, seed=seed), steps)
            rows.append(
                {
                    "skipped": way,
                    "seed": seed,
                    "steps": steps,
                    "classes": corpus.num_classes,
                    "tokens": settings.windows * settings.length,
                    "samples": settings.num_samples,
                    "lr": settings.table_rate,
                    "threads": args.threads,
                    "perplexity": digits(perplexity),
                    "cpu_ms_per_step": digits(1e3 * seconds),
                }
            )
            print_rows("so far", rows, ("skipped", "seed", "perplexity", "cpu_ms_per_step"))
    constants = environment()
    write_csv(args.output / "compare_skipped.csv", [{**row, **constants} for row in rows])


if __name__ == "__main__":
    main()

"""Train a next-item recommender over 70,000 items with negatives of seven kinds, and compare.

The data are the names that the functions of this machine's Python sources use, one after another
(next_item_data.py); the model predicts from the last eight which one comes next. Each way to train
gets the same CPU time, batches and number of negatives, and is judged exactly: recall and NDCG
among all items by the inner product, on files that training has not read. Prints a table.

    python examples/next_item.py                     # about 3 minutes of CPU time
    python examples/next_item.py --quick             # a look at it in some seconds
    python examples/next_item.py --text ~/src        # another folder of Python files
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from next_item_data import Items, load_items
from next_item_train import WAYS, Result, Settings, head_size, train

import sampled_softmax_cuda as ssc

ROOT = Path(__file__).resolve().parent.parent
QUICK_FILES = 600
QUICK = Settings(steps=120, batch=512, num_samples=512, queries=1024)


def main(
    seconds: Annotated[
        float, typer.Option(help="CPU time to train in each of the ways.", min=0.1)
    ] = Settings.seconds,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"{QUICK_FILES} files and {QUICK.steps} small steps.")
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(help="A folder of Python files.", show_default="Python's sources"),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where the sessions are kept.")] = ROOT / ".cache",
    seed: Annotated[int, typer.Option(help="Of parameters, batches and draws.")] = 0,
) -> None:
    """Train a next-item recommender with negatives of several kinds, and compare.

    All get the same CPU time and are judged exactly, over all items, on held-out files.
    """
    began = time.perf_counter()
    settings = dataclasses.replace(QUICK if quick else Settings(), seconds=seconds, seed=seed)
    try:
        items = load_items(text, QUICK_FILES if quick else None, cache)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    print(describe(items, settings), flush=True)
    print(table(train(WAYS, items, settings)))
    elapsed, cpu = time.perf_counter() - began, time.process_time()
    print(f"total time: {elapsed:.0f} s, of the processor {cpu:.0f} s")


def describe(items: Items, settings: Settings) -> str:
    head = head_size(items)
    return (
        f"{len(items.train.asked):,} training and {len(items.held_out.asked):,} held-out examples, "
        f"{items.num_items:,} items, of which {head:,} make up half of the training sessions; "
        f"the others are the rare ones\n"
        f"a step: {settings.batch:,} examples, {settings.num_samples:,} negatives; "
        f"D = {settings.width}; {torch.get_num_threads()} threads, "
        f"backend {ssc.build_info()['backend']}"
    )


def table(results: list[Result]) -> str:
    """The comparison, a line per way."""
    header = ("", "steps/CPU s", "recall@10", "recall@100", "NDCG@10", "rare recall@100")
    rows = [
        (
            result.name,
            f"{result.steps / result.seconds:,.1f}" if result.steps else "",
            *(
                f"{value:.3f}"
                for value in (
                    result.measures.recall_10,
                    result.measures.recall_100,
                    result.measures.ndcg_10,
                    result.measures.rare_recall_100,
                )
            ),
        )
        for result in results
    ]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (header, *rows)
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()

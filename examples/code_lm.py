"""Train a language model over ~160,000 classes with sampled and with full softmax, and compare.

The text is the Python code on this machine (the standard library's and torch's sources), the model
a small GRU that predicts the next token. Both runs get the same training time on the same machine
and are judged by the same measure: exact perplexity over all classes, on files that neither run
has read. Prints a table, and draws perplexity against time.

    python examples/code_lm.py                       # about 4 minutes on 2 cores
    python examples/code_lm.py --seconds 20          # a quick look
    python examples/code_lm.py --text ~/notes        # other text
"""

from __future__ import annotations

import enum
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import torch
import typer
from code_corpus import Corpus, load_corpus
from code_train import Result, Settings, train

import sampled_softmax_cuda as ssc

ROOT = Path(__file__).resolve().parent.parent
Source = tuple[Path | None, int | None, Path]  # the arguments of load_corpus
PROMPTS = ("for i in", "import numpy as", "def __init__ ( self", "raise ValueError (")


class Sampler(str, enum.Enum):
    log_uniform = "log_uniform"
    uniform = "uniform"
    unigram = "unigram"


def main(
    seconds: Annotated[float, typer.Option(help="Training time of each run.", min=0.1)] = (
        Settings.seconds
    ),
    steps: Annotated[
        int | None, typer.Option(help="Stop each run after so many steps.", min=1)
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(help="Keep the most frequent classes only.", show_default="all seen twice"),
    ] = None,
    sampler: Annotated[
        Sampler, typer.Option(help="What negatives are drawn from.")
    ] = Sampler.log_uniform,
    num_samples: Annotated[int, typer.Option(help="Negatives per step.", min=1)] = (
        Settings.num_samples
    ),
    windows: Annotated[
        int, typer.Option(help=f"Windows of {Settings.length} tokens in a batch.", min=1)
    ] = Settings.windows,
    text: Annotated[
        Path | None, typer.Option(help="A folder of text files.", show_default="Python's sources")
    ] = None,
    plot: Annotated[Path, typer.Option(help="Where the figure goes.")] = (
        ROOT / "build" / "demo" / "code_lm.png"
    ),
    cache: Annotated[Path, typer.Option(help="Where the tokenised text is kept.")] = (
        ROOT / ".cache"
    ),
    seed: Annotated[int, typer.Option(help="Of parameters, batches and draws.")] = 0,
) -> None:
    """Train a next-token model over many classes with sampled and with full softmax, and compare.

    Both runs get the same training time and are judged by exact perplexity on held-out files.
    """
    began = time.perf_counter()
    settings = Settings(
        seconds=seconds,
        steps=steps,
        num_samples=num_samples,
        sampler=sampler.value,
        windows=windows,
        seed=seed,
    )
    source = (text, classes, cache)
    try:
        corpus = load_corpus(*source)
        _, target = corpus.windows(settings.held_out_windows, settings.held_out_length)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    unigram = corpus.unigram_perplexity(target)
    print(describe(corpus, settings), flush=True)
    results = [run_alone(kind, source, settings) for kind in ("sampled", "full")]
    print(table(results, unigram))
    print(verdict(*results))
    for prompt, likely in results[0].continuations:
        print(f"  {prompt:24} -> {'   '.join(likely)}")
    draw(results, unigram, corpus.num_classes, settings, plot)
    print(f"\nfigure: {plot}\ntotal time: {time.perf_counter() - began:.0f} s")


def describe(corpus: Corpus, settings: Settings) -> str:
    batch = settings.windows * settings.length
    return (
        f"{len(corpus.train):,} training and {len(corpus.held_out):,} held-out tokens, "
        f"{corpus.num_classes:,} classes\n"
        f"a step: {batch:,} tokens; D = {settings.width}; sampled: {settings.num_samples:,} "
        f"classes drawn ({settings.sampler}); {torch.get_num_threads()} threads, "
        f"backend {ssc.build_info()['backend']}"
    )


def run_alone(kind: str, source: Source, settings: Settings) -> Result:
    """A run in a process of its own, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_load_and_train, kind, source, settings).result()


def _load_and_train(kind: str, source: Source, settings: Settings) -> Result:
    return train(kind, load_corpus(*source), settings, PROMPTS)


def table(results: list[Result], unigram: float) -> str:
    """The comparison, a line per run."""
    header = ("", "ms/step", "steps", "tokens/s", "peak memory", "perplexity")
    rows = [
        (
            f"{result.kind} softmax",
            f"{1e3 * result.seconds / result.steps:,.1f}",
            f"{result.steps:,}",
            f"{result.tokens / result.seconds:,.0f}",
            f"{result.peak_memory / 2**20:,.0f} MiB",
            f"{result.curve[-1].perplexity:,.1f}",
        )
        for result in results
    ]
    rows.append(("unigram model", "", "", "", "", f"{unigram:,.1f}"))
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (header, *rows)
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n" + "\n".join(lines) + "\n"


def verdict(sampled: Result, full: Result) -> str:
    """When the sampled run passed what the full one reached in the end, in one line."""
    goal = full.curve[-1].perplexity
    for evaluation in sampled.curve:
        if evaluation.perplexity <= goal:
            return (
                f"sampled softmax was below the full softmax's {goal:,.1f} after "
                f"{evaluation.seconds:,.1f} of {full.seconds:,.1f} s\n"
            )
    return f"sampled softmax did not get below the full softmax's {goal:,.1f}\n"


def draw(
    results: list[Result], unigram: float, num_classes: int, settings: Settings, path: Path
) -> None:
    """Held-out perplexity against training time, both runs and the unigram model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    labels = {
        "sampled": f"sampled softmax, {settings.num_samples:,} classes drawn per step",
        "full": "full softmax",
    }
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for result, colour in zip(results, ("tab:blue", "tab:orange"), strict=True):
        times = [evaluation.seconds for evaluation in result.curve]
        values = [evaluation.perplexity for evaluation in result.curve]
        label = f"{labels[result.kind]}: {1e3 * result.seconds / result.steps:,.0f} ms per step"
        axes.plot(times, values, marker="o", color=colour, label=label)
        axes.annotate(
            f"{values[-1]:,.0f}",
            (times[-1], values[-1]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    axes.axhline(unigram, color="gray", linestyle="--", label="unigram model (no context)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([m * 10**e for m in (1, 1.5, 2, 3, 5, 7) for e in range(5)])
    axes.margins(x=0.08)  # room for the numbers at the ends
    lowest = min(evaluation.perplexity for result in results for evaluation in result.curve)
    axes.set_ylim(0.8 * lowest, 1.25 * unigram)
    axes.set_xlabel(f"training time, seconds ({torch.get_num_threads()} threads)")
    axes.set_ylabel("held-out perplexity")
    axes.set_title(f"A language model of Python code with {num_classes:,} classes")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")  # off the curves
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()

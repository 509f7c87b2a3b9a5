"""One set of negatives for the whole batch, or another for every row? A table from real data.

Trains a small SASRec (W.-C. Kang, J. McAuley: Self-Attentive Sequential Recommendation, ICDM 2018)
on MovieLens-100k (movielens.py) in several ways that differ in the negatives alone: the model, its
initial values, the batches, the optimiser and the number of steps are the same. The last film of
each person is held out; recall and NDCG are exact, over all films that the person has not rated.

    OMP_NUM_THREADS=1 python examples/shared_or_per_row.py
    python examples/shared_or_per_row.py --seeds 1 --steps 60   # a look at it
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from movielens import Histories, UnavailableError, load_movielens, read_ratings
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import sampled_softmax_cuda as ssc

ROOT = Path(__file__).resolve().parent.parent
IGNORED = -100


@dataclass(frozen=True)
class Settings:
    """Settings that all ways have in common."""

    steps: int = 600
    seeds: int = 3
    users: int = 64  # of a batch; each position of a history is a row of the loss
    length: int = 32
    width: int = 48  # D
    blocks: int = 1
    dropout: float = 0.2
    rate: float = 4e-3  # of Adam


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of rows, weight and targets


@dataclass(frozen=True)
class Way:
    """num_samples negatives for the batch, or for each row; None: all classes, the full softmax."""

    name: str
    num_samples: int | None
    per_row: bool = False
    distinct: bool = False

    def loss(self, num_items: int, generator: torch.Generator) -> Loss:
        if self.num_samples is None:
            return lambda rows, weight, target: F.cross_entropy(rows @ weight.T, target)
        sampler, count = ssc.UniformSampler(num_items), min(self.num_samples, num_items)

        def sampled(rows: Tensor, weight: Tensor, target: Tensor) -> Tensor:
            samples = sampler.sample(
                target,
                count,
                replacement=not self.distinct,
                generator=generator,
                per_row=self.per_row,
            )
            return ssc.sampled_softmax_loss(rows, weight, target, samples)

        return sampled


WAYS = (
    Way("128 shared", 128),
    Way("128 shared, distinct", 128, distinct=True),
    Way("512 shared, distinct", 512, distinct=True),
    Way("1,024 shared, distinct", 1024, distinct=True),
    Way("128 per row", 128, per_row=True),
    Way("all (full softmax)", None),
)


class Block(nn.Module):
    """Causal self-attention with one head, and a layer for each position, [B, length, D]."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attention(self.norm[0](x)).chunk(3, dim=-1)
        x = x + self.output(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.dropout(self.feed(self.norm[1](x)))


class SASRec(nn.Module):
    """int64 [B, length] -> [B, length, D]; the items' rows are the classes' too. Padding, item
    `num_items`, stands in front."""

    def __init__(self, num_items: int, s: Settings) -> None:
        super().__init__()
        self.item = nn.Embedding(num_items + 1, s.width, padding_idx=num_items)
        self.place = nn.Embedding(s.length, s.width)
        for table in (self.item, self.place):
            nn.init.normal_(table.weight, std=1 / math.sqrt(s.width))
        self.dropout = nn.Dropout(s.dropout)
        self.blocks = nn.Sequential(*(Block(s.width, s.dropout) for _ in range(s.blocks)))
        self.norm = nn.LayerNorm(s.width)

    @property
    def weight(self) -> Tensor:
        return self.item.weight[:-1]

    def forward(self, history: Tensor) -> Tensor:
        return self.norm(self.blocks(self.dropout(self.item(history) + self.place.weight)))


def training_batch(data: Histories, users: NDArray[np.int64], length: int) -> tuple[Tensor, Tensor]:
    """Items [B, length] and what came after each; the last item of a user is held out."""
    window = data.last(users, length + 2)[:, :-1]
    return window[:, :-1], window[:, 1:]


def held_out(data: Histories, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """The latest items [users, length] of all users before the last one, all of them, padded, and
    the last one."""
    everything = data.last(np.arange(data.num_users), int(np.diff(data.begins).max()))
    seen, target = everything[:, :-1], everything[:, -1]
    history = data.last(np.arange(data.num_users), length + 1)[:, :-1]
    return history, seen, target


def measure(logits: Tensor, seen: Tensor, target: Tensor) -> tuple[float, float]:
    """Recall@10 and NDCG@10 of the targets among the items that a user has not seen.

    logits [B, C + 1], the last column for padding.
    """
    logits = logits.scatter(1, seen, -math.inf)
    logits[:, -1] = -math.inf
    rank = 1 + (logits > logits.gather(1, target[:, None])).sum(dim=1)
    hit = rank <= 10
    gain = torch.where(hit, 1 / torch.log2(1.0 + rank), 0.0)
    return float(hit.double().mean()), float(gain.double().mean())


class Trainer:
    """A model on its way, trained in one way from one seed."""

    def __init__(self, way: Way, data: Histories, seed: int, settings: Settings) -> None:
        torch.manual_seed(seed)
        self.data, self.settings = data, settings
        self.model = SASRec(data.num_items, settings)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.rate)
        self.rng = np.random.default_rng(seed)
        self.loss = way.loss(data.num_items, torch.Generator().manual_seed(seed))
        self.seconds = 0.0
        self.dropout_state = torch.get_rng_state()  # the trainers take turns

    def step(self) -> None:
        began = time.process_time()
        torch.set_rng_state(self.dropout_state)
        count = min(self.settings.users, self.data.num_users)
        users = self.rng.choice(self.data.num_users, count, replace=False)
        history, target = training_batch(self.data, users, self.settings.length)
        there = target != self.data.num_items
        loss = self.loss(self.model(history)[there], self.model.weight, target[there])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.dropout_state = torch.get_rng_state()
        self.seconds += time.process_time() - began

    @torch.no_grad()
    def result(self) -> tuple[float, float]:
        """Recall@10 and NDCG@10 of the held-out items."""
        self.model.eval()
        history, seen, target = held_out(self.data, self.settings.length)
        logits = self.model(history)[:, -1] @ self.model.item.weight.T
        self.model.train()
        return measure(logits, seen, target)


@dataclass(frozen=True)
class Result:
    """After each of `checkpoints`, a value per seed."""

    way: Way
    milliseconds: float  # of CPU time per step
    recall: list[list[float]]
    ndcg: list[list[float]]


def checkpoints(settings: Settings) -> list[int]:
    """A quarter, a half and all of the steps: what learns slower shows early."""
    return sorted({max(1, settings.steps // part) for part in (4, 2, 1)})


def train(ways: tuple[Way, ...], data: Histories, settings: Settings) -> list[Result]:
    """All ways from all seeds; the ways take turns, so that what slows them slows all alike."""
    stops = checkpoints(settings)
    results = {way: Result(way, 0.0, [[] for _ in stops], [[] for _ in stops]) for way in ways}
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    with tqdm(total=settings.seeds * settings.steps, desc="training", mininterval=1.0) as bar:
        for seed in range(settings.seeds):
            trainers = {way: Trainer(way, data, seed, settings) for way in ways}
            for step in range(1, settings.steps + 1):
                for way, trainer in trainers.items():
                    trainer.step()
                    if step in stops:
                        recall, ndcg = trainer.result()
                        results[way].recall[stops.index(step)].append(recall)
                        results[way].ndcg[stops.index(step)].append(ndcg)
                bar.update()
            for way, trainer in trainers.items():
                seconds[way].append(trainer.seconds / settings.steps)
    return [
        replace(results[way], milliseconds=1000 * statistics.median(seconds[way])) for way in ways
    ]


def table(results: list[Result], settings: Settings) -> str:
    """The comparison, a line per way: means over the seeds and their standard deviations."""
    stops = checkpoints(settings)
    header = ("negatives", "CPU ms/step", *(f"recall@10, {n} steps" for n in stops), "NDCG@10")
    rows = [
        (r.way.name, f"{r.milliseconds:.1f}", *map(spread, r.recall), spread(r.ndcg[-1]))
        for r in results
    ]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (header, *rows)
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n" + "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def main(
    steps: Annotated[int, typer.Option(help="Of each run.", min=1)] = Settings.steps,
    seeds: Annotated[int, typer.Option(help="Runs of each way.", min=1)] = Settings.seeds,
    ratings: Annotated[
        Path | None,
        typer.Option(help="A file of ratings.", show_default="MovieLens-100k, by pip"),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where the ratings are kept.")] = ROOT / ".cache",
) -> None:
    """Train a recommender with negatives shared by the batch and per row, and compare."""
    settings = Settings(steps=steps, seeds=seeds)
    try:
        data = load_movielens(cache) if ratings is None else read_ratings(ratings.read_text())
    except UnavailableError as error:
        raise typer.BadParameter(str(error)) from error
    print(
        f"{data.num_users:,} users, {data.num_items:,} items, {len(data.items):,} ratings; "
        f"{settings.users} users a step, {settings.length} positions each; "
        f"{torch.get_num_threads()} threads, backend {ssc.build_info()['backend']}",
        flush=True,
    )
    began = time.perf_counter()
    print(table(train(WAYS, data, settings), settings))
    elapsed, cpu = time.perf_counter() - began, time.process_time()
    print(f"total time: {elapsed:.0f} s, of the processor {cpu:.0f} s")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()

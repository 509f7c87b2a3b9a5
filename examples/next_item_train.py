"""The model of the next-item example, the ways to train it that are compared, and the measures.

The ways share everything but the negatives and the loss: the model, its initial values, the
batches, the optimisers, the number of negatives and the time. That is the processor's: on a
machine that others use too, a clock on the wall would measure them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from next_item_data import Items, Sessions
from torch import Tensor, nn
from tqdm import tqdm

import sampled_softmax_cuda as ssc

WARM_UP_STEPS = 20  # Adagrad's first steps are as long as its rate, whatever the gradient
FURTHEST = 100  # the largest k of recall@k
TURN = 0.25  # seconds: the ways train in turns, so that whatever slows them, it slows all alike


@dataclass(frozen=True)
class Settings:
    """Settings that all ways have in common; the defaults are the example's."""

    seconds: float = 20.0  # of training, for each way: CPU time, of all threads together
    steps: int | None = None  # stop after so many, if that comes first
    batch: int = 1024
    num_samples: int = 1024
    length: int = 8  # how many items back the model looks
    width: int = 64  # D
    queries: int = 4096  # held-out examples
    table_rate: float = 0.1  # Adagrad, rows of the embedding and of the items
    dense_rate: float = 0.003  # Adam, everything else
    seed: int = 0


@dataclass(frozen=True)
class Way:
    """A proposal for the negatives, and what the loss makes of them."""

    name: str
    sampler: Callable[[Items], ssc.Sampler]
    options: dict[str, str] = field(default_factory=dict)  # of sampled_softmax_loss
    # Sigmoids need logits that begin near the log odds of a random item, log(1 / C): training would
    # otherwise spend itself on pushing all items down. No ranking and no softmax feels a constant.
    lowered: bool = False


def in_batch(items: Items) -> ssc.Sampler:
    """The batch's targets, with their frequencies learnt on the way."""
    return ssc.InBatchSampler(ssc.StreamingSampler(items.num_items, update_on_sample=True))


WAYS = (
    Way("in-batch, no correction", lambda items: ssc.InBatchSampler(), {"correction": "none"}),
    Way("in-batch, logQ", in_batch),
    Way("in-batch, reweighted logQ", in_batch, {"objective": ssc.Softmax(reweighted=True)}),
    Way(
        "in-batch + uniform, logQ",
        lambda items: ssc.MixedSampler([in_batch(items), ssc.UniformSampler(items.num_items)]),
    ),
    Way("log-uniform, logQ", lambda items: ssc.LogUniformSampler(items.num_items)),
    Way(
        "counts^0.75, logQ",
        lambda items: ssc.WeightedSampler(torch.from_numpy(items.counts), power=0.75),
    ),
    Way(
        "uniform, gBCE",
        lambda items: ssc.UniformSampler(items.num_items),
        {"objective": "gbce", "correction": "none"},
        lowered=True,
    ),
)


@dataclass(frozen=True)
class Measures:
    """Means over queries with one relevant item each."""

    recall_10: float
    recall_100: float
    ndcg_10: float
    rare_recall_100: float  # of the queries whose item is rare


@dataclass(frozen=True)
class Result:
    name: str
    steps: int
    seconds: float  # of CPU time
    measures: Measures


class SessionModel(nn.Module):
    """The last items of a session, as int64 [B, length] with the latest first -> [B, D]."""

    def __init__(self, num_items: int, width: int, length: int) -> None:
        super().__init__()
        self.padding = num_items
        self.embedding = nn.Embedding(num_items + 1, width, padding_idx=num_items, sparse=True)
        nn.init.normal_(self.embedding.weight[:num_items], std=0.1)
        self.by_age = nn.Parameter(-0.5 * torch.arange(length))
        self.mix = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, history: Tensor) -> Tensor:
        rows = self.embedding(history)  # [B, length, D]
        ages = self.by_age.masked_fill(history == self.padding, -math.inf)
        mean = (ages.softmax(dim=1).unsqueeze(1) @ rows).squeeze(1)
        return self.norm(self.mix(torch.cat((rows[:, 0], mean), dim=1)))


class Trainer:
    """A model, the items' rows and their optimisers, for one way to train them."""

    def __init__(self, way: Way, items: Items, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.way, self.sessions, self.settings = way, items.train, settings
        self.rng = np.random.default_rng(settings.seed)
        # Its own: from a generator that the trainers share, the clock would decide who draws what.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.model = SessionModel(items.num_items, settings.width, settings.length)
        self.rows = nn.Parameter(0.1 * torch.randn(items.num_items, settings.width))
        self.sampler = way.sampler(items)
        self.level = torch.full((items.num_items,), -math.log(items.num_items))
        # They visit the rows that have a gradient and no others: those of the batch's histories,
        # targets and negatives.
        tables = [self.model.embedding.weight, self.rows]
        others = [p for p in self.model.parameters() if p is not tables[0]]
        self.optimizers = (
            ssc.optim.Adagrad(tables, lr=settings.table_rate),
            torch.optim.Adam(others, lr=settings.dense_rate, betas=(0.9, 0.99)),
        )
        self.steps, self.seconds = 0, 0.0

    @property
    def share_done(self) -> float:
        share = self.seconds / self.settings.seconds
        if self.settings.steps is not None:
            share = max(share, self.steps / self.settings.steps)
        return min(share, 1.0)

    def turn(self) -> None:
        """Trains for a TURN, or until it is done."""
        end = self.seconds + TURN
        while self.seconds < end and self.share_done < 1.0:
            began = time.process_time()
            self._step(rate=min(1.0, (self.steps + 1) / WARM_UP_STEPS) * (1.0 - self.share_done))
            self.seconds += time.process_time() - began
            self.steps += 1

    def _step(self, rate: float) -> None:
        """One step on a random batch; `rate` multiplies the learning rates."""
        places = self.rng.choice(self.sessions.asked, self.settings.batch)
        history, target = self.sessions.examples(places, self.settings.length, self.model.padding)
        samples = self.sampler.sample(target, self.settings.num_samples, generator=self.generator)
        loss = ssc.sampled_softmax_loss(
            self.model(history),
            self.rows,
            target,
            samples,
            bias=self.level if self.way.lowered else None,
            sparse_grad=True,
            **self.way.options,
        )
        loss.backward()
        rates = (self.settings.table_rate, self.settings.dense_rate)
        for optimizer, base in zip(self.optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * base
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def best(self, history: Tensor) -> Tensor:
        """The FURTHEST items with the largest logits, exactly: int64 [B, at most FURTHEST]."""
        return ssc.topk(self.model(history), self.rows, min(FURTHEST, len(self.rows))).indices


def train(ways: tuple[Way, ...], items: Items, settings: Settings) -> list[Result]:
    """Trains in all ways, in turns, and measures each; the last result is that of popularity."""
    trainers = [Trainer(way, items, settings) for way in ways]
    form = "training: {percentage:3.0f}%|{bar}| {elapsed}"
    with tqdm(total=100, bar_format=form, mininterval=1.0) as bar:
        while any(trainer.share_done < 1.0 for trainer in trainers):
            for trainer in trainers:
                trainer.turn()
                bar.n = round(100 * sum(t.share_done for t in trainers) / len(trainers), 3)
                bar.update(0)
    history, target = held_out(items.held_out, settings, items.num_items)
    rare = target >= head_size(items)
    results = [
        Result(
            trainer.way.name,
            trainer.steps,
            trainer.seconds,
            measure(trainer.best(history), target, rare),
        )
        for trainer in trainers
    ]
    # Items are sorted by falling frequency.
    popular = torch.arange(min(FURTHEST, items.num_items)).expand(len(target), -1)
    return [*results, Result("most popular", 0, 0.0, measure(popular, target, rare))]


def held_out(sessions: Sessions, settings: Settings, padding: int) -> tuple[Tensor, Tensor]:
    """Evenly spaced held-out examples."""
    count = min(settings.queries, len(sessions.asked))
    chosen = np.linspace(0, len(sessions.asked) - 1, count).astype(np.int64)
    return sessions.examples(sessions.asked[chosen], settings.length, padding)


def head_size(items: Items) -> int:
    """How many of the most frequent items make up half of the training sessions."""
    cumulated = np.cumsum(items.counts)
    return int(np.searchsorted(cumulated, 0.5 * cumulated[-1])) + 1


def measure(ranked: Tensor, target: Tensor, rare: Tensor) -> Measures:
    """Measures of rankings [B, K] without repeats for queries with one relevant item, target [B].

    With one relevant item NDCG@k is 1 / log2(1 + rank), or 0 if it isn't among the first k.
    rare: bool [B].
    """
    found = ranked == target.unsqueeze(1)
    hit = found.any(dim=1)
    rank = torch.where(hit, 1 + found.long().argmax(dim=1), ranked.shape[1] + 1)
    gain = torch.where(rank <= 10, 1 / torch.log2(1.0 + rank), 0.0)

    def recall(k: int, among: Tensor) -> float:
        return float((hit & (rank <= k))[among].double().mean())

    everything = torch.ones_like(rare)
    return Measures(
        recall_10=recall(10, everything),
        recall_100=recall(100, everything),
        ndcg_10=float(gain.double().mean()),
        rare_recall_100=recall(100, rare),
    )

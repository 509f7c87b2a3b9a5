"""The demo's language model and its training run, with sampled or with full softmax.

Both kinds of run share everything but the loss of a training step: the model, its initial values,
the optimisers, the batches' size, the clock and the evaluation.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from code_corpus import Corpus
from torch import Tensor, nn
from tqdm import tqdm

import sampled_softmax_cuda as ssc

# Shares of the run at which the held-out perplexity is taken; close at first, where it falls fast.
EVALUATIONS = (0.0, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0)
WARM_UP_STEPS = 20  # Adagrad's first steps are as long as its rate, whatever the gradient


@dataclass(frozen=True)
class Settings:
    """The settings of a run; the defaults are the demo's."""

    seconds: float = 90.0  # of training; evaluations are not counted
    steps: int | None = None  # stop after so many, if that comes first
    num_samples: int = 8192
    sampler: str = "log_uniform"  # or "uniform", "unigram"
    width: int = 128  # D: of the embeddings and of what the softmax sees
    hidden: int = 256  # of the recurrent state
    windows: int = 32  # a batch is windows x length tokens
    length: int = 32
    held_out_windows: int = 64
    held_out_length: int = 128
    table_rate: float = 0.1  # Adagrad, rows of the embedding and of the softmax
    recurrent_rate: float = 0.005  # Adam, everything else
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    seconds: float  # of training so far
    step: int
    perplexity: float


@dataclass(frozen=True)
class Result:
    """The figures of a run."""

    kind: str  # "sampled" or "full"
    steps: int
    seconds: float
    tokens: int
    peak_memory: int  # bytes by which the process grew: parameters, optimisers, activations
    curve: list[Evaluation]
    continuations: list[tuple[str, list[str]]]  # prompt -> the likeliest next tokens


class LanguageModel(nn.Module):
    """Embedding -> GRU -> features for the softmax: int64 [N, L] -> [N, L, D]."""

    def __init__(self, num_classes: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, width, sparse=True)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.recurrent = nn.GRU(width, hidden, batch_first=True)
        self.project = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        return self.norm(self.project(states))


class Trainer:
    """A model, the softmax above it and their optimisers, for one kind of run."""

    def __init__(
        self,
        kind: str,
        corpus: Corpus,
        settings: Settings,
        table_optimizer: Callable[..., torch.optim.Optimizer] = ssc.optim.Adagrad,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.kind, self.corpus, self.settings = kind, corpus, settings
        self.rng = np.random.default_rng(settings.seed)
        self.model = LanguageModel(corpus.num_classes, settings.width, settings.hidden)
        self.head = ssc.SampledSoftmaxLoss(
            settings.width,
            corpus.num_classes,
            settings.num_samples,
            sampler=_sampler(settings.sampler, corpus),
            sparse_grad=True,
        )
        # Begin as the unigram model: classes that training seldom meets start at their frequency
        # instead of at 1/C, which helps both kinds of run.
        prior = torch.from_numpy(corpus.counts).double() + 1
        with torch.no_grad():
            self.head.bias.copy_(torch.log(prior / prior.sum()))
            self.head.weight.mul_(0.1)
        # Adagrad and Adam visit the rows that have a gradient and no others: those that occur in
        # the batch or in the samples, or, with full softmax, all of them.
        tables = [self.model.embedding.weight, *self.head.parameters()]
        others = [p for p in self.model.parameters() if p is not self.model.embedding.weight]
        self.optimizers = (
            table_optimizer(tables, lr=settings.table_rate),
            torch.optim.Adam(others, lr=settings.recurrent_rate, betas=(0.9, 0.99)),
        )
        self.held_out = corpus.windows(settings.held_out_windows, settings.held_out_length)

    def step(self, rate: float) -> None:
        """One step on a random batch; `rate` multiplies the learning rates."""
        inputs, target = self.corpus.batch(self.settings.windows, self.settings.length, self.rng)
        features = self.model(inputs)
        if self.kind == "sampled":
            loss = self.head(features, target)
        else:
            logits = F.linear(features.flatten(0, 1), self.head.weight, self.head.bias)  # [B, C]
            loss = F.cross_entropy(logits, target.flatten())
        loss.backward()
        for optimizer, base in zip(
            self.optimizers, (self.settings.table_rate, self.settings.recurrent_rate), strict=True
        ):
            optimizer.param_groups[0]["lr"] = rate * base
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def perplexity(self) -> float:
        """Exact perplexity over all classes on the held-out windows, the same for both kinds."""
        inputs, target = self.held_out
        self.head.eval()  # the exact cross entropy, streamed over the classes
        total = sum(
            float(self.head(self.model(x), y)) * y.numel()
            for x, y in zip(inputs.split(8), target.split(8), strict=True)
        )
        self.head.train()
        return float(np.exp(total / target.numel()))

    @torch.no_grad()
    def continuations(self, prompts: tuple[str, ...]) -> list[tuple[str, list[str]]]:
        """The five likeliest tokens after each prompt whose words are all known."""
        ids = {word: i for i, word in enumerate(self.corpus.words)}
        found = []
        for prompt in prompts:
            words = prompt.split()
            if all(word in ids for word in words):
                features = self.model(torch.tensor([[ids[word] for word in words]]))[0, -1:]
                best = self.head.topk(features, min(5, len(ids))).indices[0].tolist()
                found.append((prompt, [self.corpus.words[i] for i in best]))
        return found


def train(kind: str, corpus: Corpus, settings: Settings, prompts: tuple[str, ...] = ()) -> Result:
    """Trains for the given time or number of steps, whichever ends first, and measures."""
    before = _reset_peak_memory()
    trainer = Trainer(kind, corpus, settings)
    curve: list[Evaluation] = []
    seconds, step, due = 0.0, 0, 0
    form = "{desc:>15}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    with tqdm(total=100, desc=f"{kind} softmax", bar_format=form, mininterval=1.0) as bar:
        while True:
            share = _share_done(seconds, step, settings)
            # A slow step may pass several evaluations at once; the last one is never passed over.
            if share >= EVALUATIONS[due]:
                curve.append(Evaluation(seconds, step, trainer.perplexity()))
                bar.set_postfix(step=step, perplexity=f"{curve[-1].perplexity:.1f}")
                due = bisect.bisect_right(EVALUATIONS, share)
            if share >= 1.0:
                break
            began = time.perf_counter()
            trainer.step(rate=min(1.0, (step + 1) / WARM_UP_STEPS) * (1.0 - share))
            seconds += time.perf_counter() - began
            step += 1
            bar.n = round(100 * _share_done(seconds, step, settings), 3)
            bar.update(0)
    return Result(
        kind=kind,
        steps=step,
        seconds=seconds,
        tokens=step * settings.windows * settings.length,
        peak_memory=_peak_memory() - before,
        curve=curve,
        continuations=trainer.continuations(prompts),
    )


def _sampler(name: str, corpus: Corpus) -> str | Tensor:
    """The sampler for SampledSoftmaxLoss: its name, or weights over the classes."""
    if name == "unigram":  # counts^0.75, the proposal of word2vec; +1: every class can be drawn
        return torch.from_numpy(corpus.counts + 1).double().pow(0.75)
    return name


def _share_done(seconds: float, step: int, settings: Settings) -> float:
    share = seconds / settings.seconds
    if settings.steps is not None:
        share = max(share, step / settings.steps)
    return min(share, 1.0)


def _reset_peak_memory() -> int:
    """Forgets the peak so far, where the system can, and returns the memory in use in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak_memory()
    return _proc_status("VmRSS")


def _peak_memory() -> int:
    """The most memory that this process has held at once, in bytes."""
    try:
        return _proc_status("VmHWM")
    except OSError:  # not Linux
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def _proc_status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise OSError(f"/proc/self/status has no {field}")

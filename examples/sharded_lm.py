"""Train the demo's language model with its classes over several processes, and go on with others.

Each rank owns a part of the class matrix, of its optimizer's state, and of each batch; the backbone
is under DistributedDataParallel. The run is saved by torch.distributed.checkpoint, loaded by
another number of ranks, and goes on with the loss that it had. A batch depends on the step alone,
so the numbers of ranks make no difference but for rounding.

    python examples/sharded_lm.py                                   # 2 processes, then 3
    python examples/sharded_lm.py --ranks 1 --ranks 4 --steps 100
    torchrun --nproc-per-node 2 examples/sharded_lm.py --steps 100  # as on a cluster: a new run
    torchrun --nproc-per-node 3 examples/sharded_lm.py --resume     # and its continuation
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import typer
from code_corpus import Corpus, load_corpus
from code_train import WARM_UP_STEPS, LanguageModel, Settings
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import sampled_softmax_cuda as ssc

ROOT = Path(__file__).resolve().parent.parent


class Run:
    """This rank's part of the model, its optimizers and its batches."""

    def __init__(self, corpus: Corpus, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.corpus, self.settings = corpus, settings
        self.body = nn.parallel.DistributedDataParallel(
            LanguageModel(corpus.num_classes, settings.width, settings.hidden)
        )
        self.head = ssc.distributed.ShardedSampledSoftmaxLoss(
            settings.width,
            corpus.num_classes,
            settings.num_samples,
            sampler=settings.sampler,
            sparse_grad=True,
            seed=settings.seed,
        )
        # Begin as the unigram model, as the demo does: this rank's rows of it.
        prior = torch.from_numpy(corpus.counts).double() + 1
        with torch.no_grad():
            own = prior[self.head.shard.classes] / prior.sum()
            self.head.bias.copy_(torch.log(own))
            self.head.weight.mul_(0.1)
        embedding = self.body.module.embedding.weight
        others = [p for p in self.body.parameters() if p is not embedding]
        tables = ssc.optim.Adagrad([embedding, *self.head.parameters()], lr=settings.table_rate)
        self.optimizers = [
            ssc.distributed.register_optimizer(tables, self.head),
            torch.optim.Adam(others, lr=settings.recurrent_rate, betas=(0.9, 0.99)),
        ]
        self.rates = (settings.table_rate, settings.recurrent_rate)
        self.parts = nn.ModuleDict({"body": self.body, "head": self.head})
        self.done, self.loss = 0, float("nan")  # steps, and the held-out loss after them

    def step(self) -> None:
        """A step on this rank's windows of the batch."""
        s = self.settings
        rng = np.random.default_rng([s.seed, self.done])
        inputs, target = self._own(self.corpus.batch(s.windows, s.length, rng))
        self.head(self.body(inputs), target).backward()
        ssc.distributed.clip_grad_norm_(self.parts, 1.0)
        warm = min(1.0, (self.done + 1) / WARM_UP_STEPS)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = warm * rate
            optimizer.step()
            optimizer.zero_grad()
        self.done += 1

    @torch.no_grad()
    def evaluate(self) -> float:
        """The exact loss over all classes on the held-out windows of all ranks."""
        s = self.settings
        windows = self.corpus.windows(s.held_out_windows, s.held_out_length)
        inputs, target = self._own(windows)
        loss = self.head.eval()(self.body.module(inputs), target)
        self.head.train()
        dist.all_reduce(loss)
        return float(loss) / dist.get_world_size()

    def save(self, folder: Path) -> None:
        """Every rank writes its rows, over those of an earlier save."""
        warnings.filterwarnings("ignore", "Detected an existing checkpoint")
        dcp.save(self._state(), checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        """Every rank reads the rows that are its own now, whoever wrote them."""
        state = self._state()
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(
            self.parts,
            self.optimizers,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizers"],
        )
        self.done, self.loss = int(state["done"]), float(state["loss"])

    def _state(self) -> dict[str, Any]:
        model, optimizers = get_state_dict(self.parts, self.optimizers)
        done, loss = torch.tensor(self.done), torch.tensor(self.loss, dtype=torch.float64)
        return {"model": model, "optimizers": optimizers, "done": done, "loss": loss}

    def _own(self, windows: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        rank, size = dist.get_rank(), dist.get_world_size()
        return windows[0][rank::size], windows[1][rank::size]


def main(
    ranks: Annotated[
        list[int],
        typer.Option(help="Processes, one run after the other; torchrun's own come first.", min=1),
    ] = [2, 3],  # noqa: B006
    steps: Annotated[int, typer.Option(help="Steps of each run.", min=1)] = 30,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint.")] = False,
    classes: Annotated[
        int | None,
        typer.Option(help="Keep the most frequent classes only.", show_default="all seen twice"),
    ] = None,
    num_samples: Annotated[int, typer.Option(help="Negatives per step.", min=1)] = (
        Settings.num_samples
    ),
    text: Annotated[
        Path | None, typer.Option(help="A folder of text files.", show_default="Python's sources")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the checkpoint goes.")] = (
        ROOT / "build" / "sharded_lm"
    ),
    cache: Annotated[Path, typer.Option(help="Where the tokenised text is kept.")] = (
        ROOT / ".cache"
    ),
) -> None:
    """Train a language model whose classes lie on several processes, and go on with others."""
    settings = Settings(num_samples=num_samples, held_out_windows=24)
    if resume and not (folder / ".metadata").exists():
        raise typer.BadParameter(f"there is no checkpoint in {folder} for --resume to go on from")
    try:
        corpus = load_corpus(text, classes, cache)  # the launcher fills the cache
        corpus.windows(settings.held_out_windows, settings.held_out_length)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if dist.is_torchelastic_launched():
        train(corpus, settings, steps, folder, resume)
        return
    for number, size in enumerate(ranks):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        again = ["--resume"] if number > 0 and not resume else []
        command = [*torchrun, f"--nproc-per-node={size}", __file__, *sys.argv[1:], *again]
        if (code := subprocess.run(command, check=False).returncode) != 0:
            raise typer.Exit(code)


def train(corpus: Corpus, settings: Settings, steps: int, folder: Path, resume: bool) -> None:
    """A run of one process among others."""
    dist.init_process_group("gloo")
    run = Run(corpus, settings)
    if resume:
        run.load(folder)
    loss = run.evaluate()
    if dist.get_rank() == 0:
        sizes = [run.head.shard.rows_of_rank(r) for r in range(dist.get_world_size())]
        rows = " + ".join(f"{end - begin:,}" for begin, end in sizes)
        print(f"{len(sizes)} ranks: {corpus.num_classes:,} classes = {rows} rows")
        was = f", saved as {run.loss:.6f}" if resume else ""
        print(f"  step {run.done:4}: held-out loss {loss:.6f}{was}", flush=True)
    if resume and not abs(loss - run.loss) < 1e-4 * loss:
        raise RuntimeError(f"the loss should go on at {run.loss}, and is {loss}")
    for _ in range(steps):
        run.step()
    run.loss = run.evaluate()
    run.save(folder)
    if dist.get_rank() == 0:
        print(f"  step {run.done:4}: held-out loss {run.loss:.6f}, saved", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)

"""A process of test_sharded_optimizers.py whose body is under fully_shard."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from helpers.sharded_run import Run


def handed_on(run: Run) -> Run:
    """A run with the state that the first rank has of all, which it broadcasts."""
    other = Run("torch AdamW", 5, sharded=True)
    options: dict[str, Any] = {"full_state_dict": True}
    both = get_state_dict(run.model, run.optimizer, options=StateDictOptions(**options))
    model, optimizer = copy.deepcopy(both) if distributed.get_rank() == 0 else ({}, {})
    options["broadcast_from_rank0"] = True
    set_model_state_dict(other.model, model, options=StateDictOptions(**options))
    set_optimizer_state_dict(
        other.model, other.optimizer, optimizer, options=StateDictOptions(**options)
    )
    return other


def run(rank: int, size: int, folder: str, load: bool) -> None:
    """Three steps and a save, or a load; three more, and what was trained."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store{size}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    run = Run("torch AdamW", 2 if load else 1, sharded=True)
    if load:
        run.load(f"{folder}/saved")
    else:
        run.train(0, 3)
        run.save(f"{folder}/saved")
    other = handed_on(run)
    found = {}
    for name, each in (("full", run), ("from the first", other)):
        each.train(3, 6)
        found[name] = each.full()
    torch.save(found, f"{folder}/{size}-{rank}.pt")
    distributed.destroy_process_group()

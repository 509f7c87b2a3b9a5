"""One of two processes that train heads together: what test_sample_processes.py starts.

In a module of its own because a process imports what its function's module imports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sampled_softmax_cuda as ssc

C, D, S, STEPS, BATCH = 500, 8, 64, 6, 32


def train(model: torch.nn.Module, rank: int) -> None:
    """Rank 0 sees classes 0 to 9, rank 1 classes 10 to 19."""
    for _ in range(STEPS):
        target = torch.randint(10, (BATCH,)) + 10 * rank
        model(torch.randn(BATCH, D), target).backward()


def make(kind: str) -> ssc.SampledSoftmaxLoss:
    stream = ssc.StreamingSampler(C, update_on_sample=True)
    sampler: Any = {
        "counted": stream,
        "queue": ssc.QueueSampler(100, num_classes=C),
        "weighted": ssc.WeightedSampler(torch.arange(1, C + 1)),
        "mixed": ssc.MixedSampler([ssc.InBatchSampler(stream), stream]),
    }[kind]
    return ssc.SampledSoftmaxLoss(D, C, S, sampler=sampler)


def learnt_under_ddp(rank: int) -> dict[str, Any]:
    """DistributedDataParallel with its defaults."""
    result: dict[str, Any] = {}
    for kind in ("counted", "mixed"):
        head = make(kind)
        train(DistributedDataParallel(head), rank)
        stream = head.sampler if kind == "counted" else head.sampler.samplers[1]
        result[f"{kind} own"] = stream.counts.clone()
        for name in ("once", "twice"):
            stream.sync()
            result[f"{kind} {name}"] = stream.counts.clone()
        result[f"{kind} table"] = stream.stream.table.table.clone()
    queued = make("queue")
    train(DistributedDataParallel(queued), rank)
    result["queue"] = queued.sampler.queue[:100].clone()
    weighted = make("weighted")
    model = DistributedDataParallel(weighted)
    version = weighted.sampler.table._version
    train(model, rank)
    result["buffers"] = len(model.modules_buffers)
    result["written"] = weighted.sampler.table._version - version
    return result


def unlike_starts(rank: int) -> str:
    """A checkpoint after a merge, loaded by one process alone."""
    merged, fresh = ssc.StreamingSampler(C), ssc.StreamingSampler(C)
    merged.update(torch.arange(3))
    merged.sync()
    if rank == 1:
        fresh.load_state_dict(merged.state_dict())
    try:
        fresh.sync()
    except RuntimeError as error:
        return str(error)
    return "no error"


def checkpoints(rank: int) -> dict[str, bool]:
    """torch.distributed.checkpoint through DDP, from rank 0 alone, and with fully_shard."""
    source = make("counted")
    source.sampler.update(torch.arange(100))
    source.sampler.rebuild()
    state = {name: t.clone() for name, t in get_model_state_dict(source).items()}

    def loaded(head: ssc.SampledSoftmaxLoss) -> bool:
        own: dict[str, Tensor] = head.sampler.state_dict(prefix="sampler.")
        return all(torch.equal(own[name], state[name]) for name in own)

    results = {"keys": set(state) == set(source.state_dict())}
    head = make("counted")
    model = DistributedDataParallel(head)
    results["keys of DDP"] = set(get_model_state_dict(model)) == set(state)
    set_model_state_dict(model, dict(state))
    results["DDP"] = loaded(head)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    head = make("counted")
    set_model_state_dict(head, dict(state) if rank == 0 else {}, options=options)
    results["from rank 0"] = loaded(head)
    head = make("counted")
    fully_shard(head)
    set_model_state_dict(head, dict(state), options=StateDictOptions(full_state_dict=True))
    results["fully_shard"] = loaded(head)
    train(head, rank)
    results["learns"] = int(head.sampler.counts.sum() - state["sampler.stream.counts"].sum()) == (
        STEPS * BATCH
    )
    return results


def two_processes(rank: int, folder: Path) -> None:
    """Process `rank` of two; results in folder/rank.pt."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    results = {
        "ddp": learnt_under_ddp(rank),
        "unlike": unlike_starts(rank),
        "checkpoints": checkpoints(rank),
    }
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()

"""One of several processes that learn and merge: what test_sample_processes.py starts.

In a module of its own because a process imports what its function's module imports.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import sampled_softmax_cuda as ssc
from helpers.samplers import parts


def zipf_stream(num_classes: int, seed: int) -> Any:
    """A function that draws the next n targets of a Zipf stream."""
    sampler = ssc.LogUniformSampler(num_classes)
    generator = torch.Generator().manual_seed(seed)
    return lambda n: sampler.sample(torch.tensor([0]), n, generator=generator).ids


def learn_and_merge(rank: int, folder: Path) -> None:
    """Process `rank` of two: two rounds of targets and `sync`, results in folder/rank.pt."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    counts = ssc.StreamingSampler(60, staleness=0.1)
    interval = ssc.StreamingSampler(mode="interval", num_buckets=4096)
    draw = zipf_stream(60, 10 + rank)
    for _ in range(2):  # the second time there are merged counts to start from
        for _ in range(40):
            batch = draw(32)
            counts.update(batch)
            interval.update(torch.cat((batch, torch.tensor([1000 + rank]))))
        for sampler in (counts, interval):
            sampler.sync()
    before = copy.deepcopy(interval.state_dict())
    interval.sync()  # nothing new: nothing changes
    again = interval.state_dict()
    ids, log_n, _ = parts(
        counts.sample(torch.tensor([0]), 20, generator=torch.Generator().manual_seed(1))
    )
    # A process that joins from a checkpoint must know what has been merged already.
    joined = ssc.StreamingSampler(60)
    joined.load_state_dict(counts.state_dict())
    joined.sync()
    torch.save(
        {
            "counts": counts.counts,
            "joined": joined.counts,
            "drawn": (ids, log_n),
            "log_prob": interval.log_prob(
                torch.cat((torch.arange(60), torch.tensor([1000, 1001])))
            ),
            "seen": (int(interval.stream.seen), int(interval.stream.seen_elsewhere)),
            "idempotent": all(torch.allclose(before[k], again[k]) for k in before),
        },
        folder / f"{rank}.pt",
    )
    distributed.destroy_process_group()

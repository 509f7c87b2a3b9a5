"""Shared by the tests of the samplers' state: every sampler that has some, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampled_softmax_cuda as ssc

from .samplers import key, parts, zipf

C = 50
TARGET = torch.tensor([3, 1, 0, 41])
SEEN = torch.tensor([7, 7, 7, 2, 49, 3])


def counted(**options: Any) -> ssc.StreamingSampler:
    sampler = ssc.StreamingSampler(C, update_on_sample=True, **options)
    sampler.update(SEEN)
    return sampler


def intervals(**options: Any) -> ssc.InBatchSampler:
    stream = ssc.StreamingSampler(C, mode="interval", num_buckets=64, **options)
    for ids in SEEN.split(2):
        stream.update(ids)
    return ssc.InBatchSampler(stream)


def queue(**options: Any) -> ssc.QueueSampler:
    sampler = ssc.QueueSampler(5, num_classes=C, **options)
    sampler.update(SEEN)
    return sampler


def mixed(**options: Any) -> ssc.MixedSampler:
    stream = counted(**options)
    parts = [ssc.InBatchSampler(stream), stream, queue(**options), weighted(**options)]
    return ssc.MixedSampler(parts)


def weighted(**options: Any) -> ssc.WeightedSampler:
    return ssc.WeightedSampler(zipf(C), **options)


def tensorflows_unigram(**options: Any) -> ssc.tf.LearnedUnigram:
    state = ssc.tf.LearnedUnigram(C, **options)
    state.observe(SEEN)
    return state


def tensorflows_list(**options: Any) -> ssc.WeightedSampler:
    unigrams = zipf(C - 1).tolist()
    return ssc.tf.fixed_unigram_sampler(C, num_reserved_ids=1, unigrams=unigrams, **options)


def cntks(**options: Any) -> ssc.WeightedSampler:
    weights = weighted(**options) if options else zipf(C)
    return ssc.cntk.CrossEntropyWithSampledSoftmax(C, 4, 8, weights).sampler


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "weighted": weighted,
    "counted": counted,
    "intervals": intervals,
    "queue": queue,
    "in-batch": lambda **options: ssc.InBatchSampler(weighted(**options)),
    "mixed": mixed,
    "tf learned": tensorflows_unigram,
    "tf list": tensorflows_list,
    "cntk": cntks,
}

# Each of them, as the parameter "kind".
ALL = pytest.mark.parametrize("kind", MAKERS)


def numbers(sampler: nn.Module, seed: int = 3) -> list[Tensor]:
    """Draws and probabilities of a sampler as it is now; it learns nothing of them."""
    ids = torch.arange(C)
    if isinstance(sampler, ssc.tf.LearnedUnigram):
        return [sampler.draw(key(seed), 12, unique)[0] for unique in (False, True)] + [
            sampler.probability(ids)
        ]
    assert isinstance(sampler, ssc.Sampler)
    training = sampler.training
    sampler.eval()
    results: list[Tensor] = []
    for replacement in (True, False):
        torch.manual_seed(seed)
        results += parts(sampler.sample(TARGET, 12, replacement=replacement))
    sampler.train(training)
    return results


def assert_same(got: list[Tensor] | ssc.Samples, expected: list[Tensor] | ssc.Samples) -> None:
    pair = (parts(x) if isinstance(x, ssc.Samples) else x for x in (got, expected))
    for x, y in zip(*pair, strict=True):
        assert torch.equal(x, y), f"{x} for {y}"


def differ(a: list[Tensor], b: list[Tensor]) -> bool:
    return not all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def state_tensors(sampler: nn.Module) -> dict[str, Tensor]:
    """All state by its name in a state_dict, also what is not persistent."""
    found: dict[str, Tensor] = {}
    for prefix, module in sampler.named_modules(remove_duplicate=False):
        for name, tensor in module.named_buffers(recurse=False):
            found[f"{prefix}.{name}" if prefix else name] = tensor
    return found


def other(kind: str) -> nn.Module:
    """A sampler of the same kind with another state."""
    sampler = MAKERS[kind]()
    for module in sampler.modules():
        if isinstance(module, ssc.WeightedSampler):
            module.update(zipf(C).flip(0))
        elif isinstance(module, (ssc.StreamingSampler, ssc.QueueSampler)):
            module.update(torch.tensor([11, 12, 12, 13]))
        elif isinstance(module, ssc.tf.LearnedUnigram):
            module.observe(torch.tensor([11, 12, 12, 13]))
    if isinstance(sampler, ssc.StreamingSampler):
        sampler.rebuild()
    return sampler

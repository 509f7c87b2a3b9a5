"""Samplers: where the negative classes come from, and how often each is expected."""

from ..samples import KeyedSamples, Samples, mask_samples
from .base import Sampler
from .log_uniform import LogUniformSampler
from .mixed import MixedSampler
from .pool import InBatchSampler, QueueSampler
from .streaming import StreamingSampler
from .uniform import UniformSampler
from .weighted import WeightedSampler

__all__ = [
    "InBatchSampler",
    "KeyedSamples",
    "LogUniformSampler",
    "MixedSampler",
    "QueueSampler",
    "Sampler",
    "Samples",
    "StreamingSampler",
    "UniformSampler",
    "WeightedSampler",
    "mask_samples",
]

"""Samplers: where the negative classes come from, and how often each is expected."""

from .base import Sampler, Samples
from .keyed import KeyedSamples, mask_samples
from .log_uniform import LogUniformSampler
from .uniform import UniformSampler
from .weighted import WeightedSampler

__all__ = [
    "KeyedSamples",
    "LogUniformSampler",
    "Sampler",
    "Samples",
    "UniformSampler",
    "WeightedSampler",
    "mask_samples",
]

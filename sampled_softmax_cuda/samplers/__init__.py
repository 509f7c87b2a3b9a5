"""Samplers: where the negative classes come from, and how often each is expected."""

from .base import Sampler, Samples
from .log_uniform import LogUniformSampler
from .uniform import UniformSampler
from .weighted import WeightedSampler

__all__ = ["LogUniformSampler", "Sampler", "Samples", "UniformSampler", "WeightedSampler"]

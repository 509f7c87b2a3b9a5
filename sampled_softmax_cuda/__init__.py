"""Sampled softmax for PyTorch: train over millions of classes at the cost of a few thousand.

    samples = ssc.LogUniformSampler(num_classes).sample(target, 4096)
    loss = ssc.sampled_softmax_loss(hidden, weight, target, samples, bias=bias, sparse_grad=True)

or `ssc.SampledSoftmaxLoss`, a module that owns the class matrix, samples in training and computes
the exact cross entropy in eval mode. `ssc.cntk` and `ssc.tf` have CNTK's and TensorFlow's functions
under their own names, `ssc.reference` has everything in plain PyTorch, and `ssc.build_info()` says
what runs here.
"""

from typing import TYPE_CHECKING as _CHECKING
from typing import Any as _Any

from . import cntk, optim, reference, samplers, tf
from ._info import build_info, version
from .diagnose import Diagnosis, diagnose
from .exact import TopK, exact_cross_entropy, log_prob, logits, topk
from .functional import SampledSoftmaxDetails, sampled_softmax_loss
from .memory import prefer_huge_pages
from .modules import SampledSoftmaxLoss
from .objectives import GBCE, NCE, NegativeSampling, Objective, Softmax
from .samplers import (
    InBatchSampler,
    KeyedSamples,
    LogUniformSampler,
    MixedSampler,
    QueueSampler,
    Sampler,
    Samples,
    StreamingSampler,
    UniformSampler,
    WeightedSampler,
    mask_samples,
)

if _CHECKING:
    from . import distributed as distributed


def __getattr__(name: str) -> _Any:
    # `ssc.distributed` needs DTensor, which takes time to import and which not every torch has.
    if name == "distributed":
        from importlib import import_module

        return import_module(".distributed", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = version()

__all__ = [
    "GBCE",
    "NCE",
    "Diagnosis",
    "InBatchSampler",
    "KeyedSamples",
    "LogUniformSampler",
    "MixedSampler",
    "NegativeSampling",
    "Objective",
    "QueueSampler",
    "SampledSoftmaxDetails",
    "SampledSoftmaxLoss",
    "Sampler",
    "Samples",
    "Softmax",
    "StreamingSampler",
    "TopK",
    "UniformSampler",
    "WeightedSampler",
    "__version__",
    "build_info",
    "cntk",
    "diagnose",
    "distributed",
    "exact_cross_entropy",
    "log_prob",
    "logits",
    "mask_samples",
    "optim",
    "prefer_huge_pages",
    "reference",
    "sampled_softmax_loss",
    "samplers",
    "tf",
    "topk",
]

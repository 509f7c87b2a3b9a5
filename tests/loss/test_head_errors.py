"""Errors of `SampledSoftmaxLoss`: what does not fit is said when it is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sampled_softmax_cuda as ssc


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"in_features": 0}, ValueError, "in_features must be at least 1, got 0"),
        ({"num_classes": -2}, ValueError, "num_classes must be at least 1, got -2"),
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
        ({"num_samples": 2.5}, TypeError, "num_samples must be an int, got float"),
        (
            {"num_samples": 60, "replacement": False},
            ValueError,
            "num_samples must be at most num_classes=50 without replacement, got 60",
        ),
        ({"per_row": True, "cosine": True}, ValueError, "cosine does not go with samples per row"),
        ({"softcap": -1.0}, ValueError, "softcap must be positive"),
        ({"objective": "hinge"}, ValueError, "objective must be one of"),
        ({"sampler": "zipf"}, ValueError, "sampler must be 'uniform', 'log_uniform'.*got 'zipf'"),
        ({"sampler": 3}, TypeError, "sampler must be a str, a Sampler or a Tensor, got int"),
        (
            {"sampler": torch.ones(49)},
            ValueError,
            r"sampler weights must be \[C=50\], got \[49\]",
        ),
        (
            {"sampler": ssc.UniformSampler(51)},
            ValueError,
            "sampler must draw from num_classes=50 classes, got one over 51",
        ),
        ({"temperature": -1.0}, ValueError, "temperature must be positive"),
        ({"correction": "half"}, ValueError, "correction must be one of"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index must be an int"),
        ({"dtype": torch.int32}, TypeError, "dtype must be float32"),
        (
            {"class_weight": torch.ones(50), "device": "meta"},
            ValueError,
            "class_weight must be on the device of weight, meta, got cpu",
        ),
    ],
    ids=str,
)
def test_module(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = {"in_features": 4, "num_classes": 50, "num_samples": 10, **changes}
    with pytest.raises(kind, match=rf"SampledSoftmaxLoss: {message}"):
        ssc.SampledSoftmaxLoss(**arguments)


def test_samplers() -> None:
    sampler, target = ssc.UniformSampler(9), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator or None, got int"):
        sampler.sample(target, 4, generator=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"num_samples must be below 2\^31, got 1099511627776"):
        sampler.sample(target, 2**40)
    with pytest.raises(TypeError, match=r"samplers must be a list of Samplers, got a UniformSampl"):
        ssc.MixedSampler(sampler)  # type: ignore[arg-type]
    keyed = sampler.sample_keyed(torch.zeros(3, 2, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match=r"got some for \[3, 2\]: draw them with num_true=T"):
        ssc.sampled_softmax_loss(
            torch.randn(3, 4), torch.randn(9, 4), torch.zeros(3, 2, dtype=torch.int64), keyed
        )

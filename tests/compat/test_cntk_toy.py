"""The toy task of CNTK's tutorial: our curves are those that the tutorial prints."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from helpers import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def toy() -> Iterator[Any]:
    """The example, on one thread, as it runs itself."""
    import cntk_toy

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield cntk_toy
    torch.set_num_threads(threads)


def test_the_curves_are_the_tutorials(native: None, toy: Any) -> None:
    """Its run is one more: within four deviations of our eight, at every point that it prints."""
    curves = [toy.train("distinct", seed) for seed in range(8)]
    for ours, published in (
        ([curve.full for curve in curves], toy.PUBLISHED_FULL),
        ([curve.training for curve in curves], toy.PUBLISHED_SAMPLED),
    ):
        values = torch.tensor(ours)
        distance = (values.mean(dim=0) - torch.tensor(published)).abs()
        # The tutorial evaluates on a thousand rows drawn at random, we on all classes.
        deviation = values.std(dim=0).clamp(min=0.03)
        assert (distance < 4 * deviation).all(), (values.mean(dim=0), published)


@pytest.mark.parametrize("method", ["distinct", "duplicates"])
def test_samples_learn_what_the_full_softmax_learns(native: None, toy: Any, method: str) -> None:
    """Every class is told apart, and the full softmax's cross entropy is reached with twice its
    minibatches, each of which looks at 10 of 50 classes."""
    full = toy.train("full", 0)
    sampled = toy.train(method, 0, num_minibatches=2 * toy.NUM_MINIBATCHES)
    assert full.full[-1] < 1.3
    assert sampled.full[-1] < full.full[-1]
    assert sampled.error == 0.0


def test_samples_by_the_datas_law_are_better(native: None, toy: Any) -> None:
    """The tutorial's second figure: Zipf's law for the data, uniform or Zipf's for the samples."""
    zipf = toy.zipf_weights()
    uniform, matched = (
        toy.mean([toy.train("distinct", seed, zipf, weights) for seed in range(4)]).full[-1]
        for weights in (None, zipf)
    )
    assert matched < uniform


@pytest.mark.slow
def test_the_command() -> None:
    command = [sys.executable, str(EXAMPLES / "cntk_toy.py"), "--runs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "\n       95          1.660" in done.stdout
    assert "\n    81-90          0.826" in done.stdout

"""The toy task of CNTK's tutorial 207, "Training with Sampled Softmax", beside its own figures.

Fifty classes are projected at random into ten dimensions, and a softmax over ten samples per
minibatch learns to tell them apart again. Sizes, learning rate and momentum are the tutorial's:
https://github.com/microsoft/CNTK/blob/master/Tutorials/CNTK_207_Training_with_Sampled_Softmax.ipynb

    python examples/cntk_toy.py              # a few seconds
    python examples/cntk_toy.py --runs 50    # means over more random starts
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import sampled_softmax_cuda as ssc

NUM_CLASSES = 50
HIDDEN_DIM = 10
NUM_SAMPLES = 10
MINIBATCH = 100
NUM_MINIBATCHES = 100
LEARNING_RATE = 0.03  # per sample: the gradient is that of the minibatch's sum
MOMENTUM = math.exp(-MINIBATCH / (5 * MINIBATCH))  # a time constant of five minibatches

# The tutorial's figures for sampled softmax without duplicates, uniform data and weights: the
# cross entropy from the full softmax after each of these minibatches, and, by its progress printer,
# the mean of the sampled one over ten minibatches each.
REPORTED_AT = range(5, NUM_MINIBATCHES, 10)
PUBLISHED_FULL = (3.843, 3.483, 3.061, 2.781, 2.452, 2.262, 2.092, 1.924, 1.751, 1.660)
# fmt: off
PUBLISHED_SAMPLED = (
    2.321515, 2.042852, 1.701563, 1.435229, 1.268124, 1.052258, 0.979096, 0.908541, 0.825795,
)
# fmt: on


class Curve(NamedTuple):
    """How a run went."""

    full: list[float]
    """The exact cross entropy after minibatches 5, 15, 25, ..."""
    training: list[float]
    """The mean loss that was trained on, of each ten minibatches."""
    error: float
    """The exact error rate at the end."""


def zipf_weights() -> Tensor:
    """The tutorial's other distribution of the classes, 1 / (i + 5)."""
    return 1.0 / (torch.arange(NUM_CLASSES) + 5.0)


def train(
    method: str,
    seed: int,
    data_weights: Tensor | None = None,
    weights: Tensor | None = None,
    num_minibatches: int = NUM_MINIBATCHES,
) -> Curve:
    """One run.

    Args:
        method: "full", "duplicates" or "distinct": the full softmax, or samples with or without
            duplicates.
        seed: of everything random.
        data_weights: [C], how often each class is to be recognised. None: equally often.
        weights: [C], how often each is drawn as a sample. None: equally often.
        num_minibatches: the tutorial's hundred, or more to see where it ends.
    """
    torch.manual_seed(seed)
    data = torch.ones(NUM_CLASSES) if data_weights is None else data_weights
    embedding = torch.randn(NUM_CLASSES, HIDDEN_DIM) / math.sqrt(HIDDEN_DIM)
    head = ssc.cntk.CrossEntropyWithSampledSoftmax(
        NUM_CLASSES,
        HIDDEN_DIM,
        NUM_SAMPLES,
        torch.ones(NUM_CLASSES) if weights is None else weights,
        allow_duplicates=method == "duplicates",
    )
    # CNTK's momentum keeps a mean of the gradients, torch's a sum of the older ones.
    optimizer = torch.optim.SGD(
        head.parameters(), lr=LEARNING_RATE * (1 - MOMENTUM), momentum=MOMENTUM
    )
    full, training = [], []
    for minibatch in range(1, num_minibatches):
        labels = torch.multinomial(data, MINIBATCH, replacement=True)
        z, cross_entropy, _ = head(embedding[labels], labels)
        if method == "full":
            cross_entropy = F.cross_entropy(z, labels, reduction="none")
        optimizer.zero_grad()
        cross_entropy.sum().backward()
        optimizer.step()
        training.append(float(cross_entropy.detach().mean()))
        if minibatch % 10 == 5:
            full.append(evaluate(head, embedding, data)[0])
    means = [sum(training[i : i + 10]) / 10 for i in range(0, num_minibatches - 10, 10)]
    return Curve(full, means, evaluate(head, embedding, data)[1])


@torch.no_grad()
def evaluate(
    head: ssc.cntk.CrossEntropyWithSampledSoftmax, embedding: Tensor, data: Tensor
) -> tuple[float, float]:
    """Exact cross entropy and error rate over the distribution of the data."""
    z = embedding @ head.weight.T + head.bias.reshape(-1)
    labels, share = torch.arange(NUM_CLASSES), data / data.sum()
    cross_entropy = F.cross_entropy(z, labels, reduction="none")
    wrong = (z.argmax(dim=1) != labels).to(z.dtype)
    return float((share * cross_entropy).sum()), float((share * wrong).sum())


def mean(curves: list[Curve]) -> Curve:
    """Point by point."""
    full, training = (
        torch.tensor([curve[i] for curve in curves]).mean(dim=0).tolist() for i in range(2)
    )
    return Curve(full, training, sum(curve.error for curve in curves) / len(curves))


def main() -> None:
    """Print the tutorial's figures beside means of our own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="random starts to take means of")
    runs = parser.parse_args().runs
    if runs < 1:
        parser.error(f"--runs must be at least 1, got {runs}")
    torch.set_num_threads(1)  # more only get in each other's way on such small matrices
    curves = {
        method: mean([train(method, seed) for seed in range(runs)])
        for method in ("distinct", "duplicates", "full")
    }
    print(f"Exact cross entropy; CNTK's from its tutorial, one run; ours, means of {runs} runs.\n")
    print("             sampled, without duplicates    with duplicates    full softmax")
    print("minibatch           CNTK        ours               ours              ours")
    for i, minibatch in enumerate(REPORTED_AT):
        ours = [curves[method].full[i] for method in ("distinct", "duplicates", "full")]
        print(
            f"{minibatch:9}{PUBLISHED_FULL[i]:15.3f}{ours[0]:12.3f}{ours[1]:19.3f}{ours[2]:18.3f}"
        )
    errors = [f"{curves[m].error:.1%}" for m in ("distinct", "duplicates", "full")]
    print(f"error{'':19}{errors[0]:>12}{errors[1]:>19}{errors[2]:>18}\n")
    print(
        "Sampled cross entropy that was trained on, without duplicates, mean of ten minibatches.\n"
    )
    print("minibatches         CNTK        ours")
    for i, published in enumerate(PUBLISHED_SAMPLED):
        minibatches = f"{10 * i + 1}-{10 * i + 10}"
        print(f"{minibatches:>9}{published:15.3f}{curves['distinct'].training[i]:12.3f}")
    zipf = zipf_weights()
    print(
        "\nClasses by Zipf's law, 1 / (i + 5): exact cross entropy in the end, with samples drawn\n"
    )
    for name, weights in (("uniformly", None), ("by that law", zipf)):
        curve = mean([train("distinct", seed, zipf, weights) for seed in range(runs)])
        print(f"{name:>12}{curve.full[-1]:8.3f}, error {curve.error:.1%}")


if __name__ == "__main__":
    main()

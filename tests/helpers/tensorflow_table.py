"""TensorFlow's own results, and a table of them that is kept in data/tensorflow.json.

    pip install tensorflow-cpu && python tests/helpers/tensorflow_table.py  # writes it anew

Tests compare with the table everywhere, and with TensorFlow where it is installed.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

TABLE = Path(__file__).resolve().parents[1] / "data" / "tensorflow.json"
LOSSES = ("sampled_softmax_loss", "nce_loss")


def tensorflow() -> Any:
    """The package, which mypy and most machines don't know, without its messages."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return importlib.import_module("tensorflow")


def random_case(
    rng: np.random.Generator, loss: str, num_true: int, remove_hits: bool, sizes: tuple[int, ...]
) -> dict[str, Any]:
    """Arguments of a loss: distinct samples, as TensorFlow's hits presuppose, some of them hits."""
    B, C, D, S = sizes
    sampled = rng.permutation(C)[:S]
    labels = rng.integers(0, C, (B, num_true))
    labels[0, -1] = sampled[0]
    return {
        "loss": loss,
        "weights": rng.standard_normal((C, D)).astype(np.float32),
        "biases": rng.standard_normal(C).astype(np.float32),
        "labels": labels,
        "inputs": rng.standard_normal((B, D)).astype(np.float32),
        "num_sampled": S,
        "num_classes": C,
        "num_true": num_true,
        "sampled_values": (
            sampled,
            rng.uniform(0.05, 3.0, (B, num_true)).astype(np.float32),
            rng.uniform(0.05, 3.0, S).astype(np.float32),
        ),
        "remove_accidental_hits": remove_hits,
        "upstream": rng.standard_normal(B).astype(np.float32),
    }


def loss_by_tensorflow(tf: Any, case: dict[str, Any]) -> dict[str, Any]:
    """Loss [B], and the gradients of (loss * upstream).sum()."""
    arguments = {k: v for k, v in case.items() if k not in ("loss", "upstream")}
    arguments["labels"] = tf.constant(case["labels"], tf.int64)
    leaves = {name: tf.Variable(case[name]) for name in ("weights", "biases", "inputs")}
    with tf.GradientTape() as tape:
        loss = getattr(tf.nn, case["loss"])(**{**arguments, **leaves})
        total = tf.reduce_sum(loss * case["upstream"])
    grads = tape.gradient(total, list(leaves.values()))
    dense = (tf.convert_to_tensor(grad).numpy() for grad in grads)
    return {"loss": loss.numpy(), **dict(zip(leaves, dense, strict=True))}


# Candidate samplers whose true_expected_count is kept: function, then its arguments.
DRAWS: list[tuple[str, dict[str, Any]]] = [
    (
        f"{kind}_candidate_sampler",
        {"num_sampled": 20 if unique else 6, "unique": unique, "range_max": 40},
    )
    for kind in ("uniform", "log_uniform")
    for unique in (False, True)
]
DRAWS.append(("all_candidate_sampler", {"num_sampled": 40, "unique": True}))
UNIGRAMS = [float(1 + (7 * k) % 11) for k in range(40)]
DRAWS += [
    (
        "fixed_unigram_candidate_sampler",
        {"num_sampled": 6, "range_max": 40, "unigrams": UNIGRAMS, **options},
    )
    for options in (
        {"unique": False},
        {"unique": True, "distortion": 0.75, "num_sampled": 25},
        {"unique": False, "distortion": 0.0},
        {"unique": False, "unigrams": UNIGRAMS[3:], "num_reserved_ids": 3, "distortion": 0.0},
        {"unique": False, "num_shards": 3, "shard": 1, "range_max": 13},
    )
]
TRUE_CLASSES = [[0, 1], [5, 12], [3, 3], [2, 9]]


def counts_by_tensorflow(tf: Any, function: str, arguments: dict[str, Any]) -> np.ndarray:
    """true_expected_count of TRUE_CLASSES."""
    sampler = getattr(tf.random, function)
    return sampler(tf.constant(TRUE_CLASSES, tf.int64), 2, seed=1, **arguments)[1].numpy()


def learned_counts(tf: Any, num_calls: int) -> list[Any]:
    """true_expected_count of the same operator of learned unigrams, call by call."""
    labels = tf.constant(TRUE_CLASSES, tf.int64)
    sampler = tf.random.learned_unigram_candidate_sampler
    calls = (sampler(labels, 2, 6, False, 14, seed=1)[1] for _ in range(num_calls))
    return [count.numpy() for count in calls]


def hits_by_tensorflow(tf: Any, labels: Any, sampled: Any) -> list[tuple[int, int]]:
    """(row, position) of each accidental hit, sorted."""
    labels = tf.constant(labels, tf.int64)
    found = tf.nn.compute_accidental_hits(labels, tf.constant(sampled, tf.int64), labels.shape[1])
    return sorted(zip(found[0].numpy().tolist(), found[1].numpy().tolist(), strict=True))


def _plain(value: Any) -> Any:
    """As JSON takes it, with float32 numbers at their shortest."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(list(value))
    if isinstance(value, np.float32):
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value


def main() -> None:
    """Write the table."""
    tf = tensorflow()
    rng = np.random.default_rng(20)
    grid = [(loss, T, hits) for loss in LOSSES for T in (1, 2, 3, 4) for hits in (True, False)]
    cases = [random_case(rng, *choice, sizes=(3, 12, 3, 5)) for choice in grid]
    labels, sampled = [[0, 7], [3, 4], [9, 9]], [3, 9, 1, 7, 5]
    table = {
        "tensorflow": tf.__version__,
        "losses": [{"case": case, "expected": loss_by_tensorflow(tf, case)} for case in cases],
        "counts": [
            {"function": f, "arguments": a, "expected": counts_by_tensorflow(tf, f, a)}
            for f, a in DRAWS
        ],
        "learned": learned_counts(tf, 3),
        "hits": {
            "labels": labels,
            "sampled": sampled,
            "expected": hits_by_tensorflow(tf, labels, sampled),
        },
    }
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(json.dumps(_plain(table), indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

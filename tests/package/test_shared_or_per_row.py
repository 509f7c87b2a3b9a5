"""The example that compares shared and per-row negatives: its data, its measures, a quick run."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch

from helpers import ROOT

np = pytest.importorskip("numpy")
pytest.importorskip("tqdm")
pytest.importorskip("typer")

EXAMPLES = ROOT / "examples"
HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


@pytest.fixture
def movielens():
    import movielens

    return movielens


@pytest.fixture
def example(movielens):
    import shared_or_per_row

    return shared_or_per_row


@pytest.fixture
def cycles(movielens):
    """Sixty users walk round a circle of 60 items, 20 or 21 steps each."""
    rows = [
        f"{user + 100}\t{(user * 7 + step) % 60 + 5}\t3\t{step}\n"
        for step in range(21)
        for user in range(60)
        if step < 20 or user % 2
    ]
    return HEADER + "".join(rows)


def test_histories_are_in_the_order_of_time(movielens):
    text = HEADER + "7\t30\t5\t2\n9\t10\t1\t1\n7\t20\t4\t1\n7\t10\t4\t2\n9\t30\t2\t0\n"
    data = movielens.read_ratings(text)
    assert data.items.tolist() == [1, 2, 0, 2, 0]  # of equal times, as in the file
    assert data.begins.tolist() == [0, 3, 5]
    assert (data.num_users, data.num_items) == (2, 3)
    assert data.last(np.array([1, 0]), 3).tolist() == [[3, 2, 0], [1, 2, 0]]


def test_the_last_item_is_held_out(movielens, example):
    data = movielens.Histories(np.arange(9), np.array([0, 4, 9]), 9)
    history, target = example.training_batch(data, np.array([0, 1]), 4)
    assert history.tolist() == [[9, 9, 0, 1], [9, 4, 5, 6]]
    assert target.tolist() == [[9, 0, 1, 2], [4, 5, 6, 7]]
    history, seen, target = example.held_out(data, 3)
    assert history.tolist() == [[0, 1, 2], [5, 6, 7]]
    assert seen.tolist() == [[9, 0, 1, 2], [4, 5, 6, 7]]
    assert target.tolist() == [3, 8]


def test_measures_of_known_ranks(example):
    logits = torch.arange(30.0).flip(0).repeat(3, 1)  # the best is item 0; 29 is padding
    seen = torch.tensor([[0, 1], [29, 29], [29, 3]])
    target = torch.tensor([4, 10, 0])  # third, eleventh, first
    recall, ndcg = example.measure(logits, seen, target)
    assert recall == pytest.approx(2 / 3)
    assert ndcg == pytest.approx((1 / math.log2(4) + 1) / 3)


def test_every_way_learns(movielens, example, cycles):
    """The next item on a circle, exactly known after some steps with negatives of any kind."""
    data = movielens.read_ratings(cycles)
    settings = example.Settings(steps=60, seeds=1, users=60, length=12, width=16, dropout=0.0)
    results = example.train(example.WAYS, data, settings)
    assert [r.way for r in results] == list(example.WAYS)
    for result in results:
        assert result.recall[-1][0] > 0.9 and result.ndcg[-1][0] > 0.5, result
        assert result.milliseconds > 0


def test_the_ways_share_no_random_state(movielens, example, cycles):
    """Trained alone or beside others, a way gives the same."""
    data = movielens.read_ratings(cycles)
    settings = example.Settings(steps=4, seeds=2, users=20, length=6, width=8)
    together = example.train(example.WAYS, data, settings)
    alone = example.train(example.WAYS[-2:-1], data, settings)
    assert alone[0].ndcg == together[-2].ndcg


@pytest.mark.slow
def test_the_command(tmp_path, cycles):
    ratings = tmp_path / "ratings.tsv"
    ratings.write_text(cycles)
    command = [sys.executable, str(EXAMPLES / "shared_or_per_row.py"), "--ratings", str(ratings)]
    run = subprocess.run(
        [*command, "--steps", "2", "--seeds", "2"], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert "60 users, 60 items, 1,230 ratings" in run.stdout
    lines = run.stdout.split("---\n")[1].split("\n\n")[0].splitlines()
    assert len(lines) == 6 and lines[0].startswith("128 shared ")
    assert all(line.count("±") == 3 for line in lines)


@pytest.mark.slow
def test_without_the_wheel_it_says_what_to_do(tmp_path):
    """pip finds nothing: one message that names the package, and no traceback."""
    command = [sys.executable, str(EXAMPLES / "shared_or_per_row.py"), "--cache", str(tmp_path)]
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 2
    message = " ".join(run.stderr.replace("│", " ").split())
    assert "recbole==1.2.1" in message and "--ratings" in message
    assert "Traceback" not in run.stderr

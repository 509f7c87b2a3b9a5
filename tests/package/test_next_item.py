"""The next-item example: its sessions, its measures, and a quick run of the real command."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch

from helpers import ROOT
from helpers.command_line import refusal

np = pytest.importorskip("numpy")
pytest.importorskip("tqdm")
pytest.importorskip("typer")

EXAMPLES = ROOT / "examples"
SOURCE = '''
import os
class X(Base):
    """Not e.g. this, nor f(this)."""
    def first(self):  # nor this.one
        y = os.path.join(a.b, ", ".join("open(x)"), 'c.d')
        if (y): return (self.a.b, len(y)[0].foo(1.5))
async def second(): await z.get(); print(print(1))
'''


@pytest.fixture
def data():
    import next_item_data

    return next_item_data


@pytest.fixture
def training(data):
    import next_item_train

    return next_item_train


def test_names_of_each_function(data):
    assert data.names_used(SOURCE) == [
        [],
        [],
        ["os.path.join", "a.b", ".join", "self.a.b", "len", ".foo"],
        ["z.get", "print", "print"],
    ]


def test_sessions_of_files(data, tmp_path):
    """Whole files are held out; what training doesn't have twice is gone, and so are repeats."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.py").write_text(
            f"def f(): a(); a(); once{i}(); a(); b.c\ndef g(): d(); b.c\n"
            f"def h(): a(); mark{i}(); mark{i}()\n"
        )
    (folder / "binary.py").write_bytes(b"\xff a(); a()")
    items = data.load_items(folder, None, tmp_path)
    again = data.load_items(folder, None, tmp_path)  # from the cache
    for side in ("train", "held_out"):
        assert (getattr(items, side).items == getattr(again, side).items).all()
    assert not any(name.startswith("once") for name in items.names)

    def by_session(sessions):
        names = [items.names[i] for i in sessions.items]
        starts = [*np.unique(sessions.begins), len(names)]
        return [names[i:j] for i, j in itertools.pairwise(starts)]

    held_out, train = by_session(items.held_out), by_session(items.train)
    assert len(held_out) % 3 == 0 and len(held_out) + len(train) == 90
    assert held_out[:3] == [["a", "b.c"], ["d", "b.c"], ["a"]]  # its mark is not in training
    assert train[:2] == held_out[:2] and train[2][0] == "a" and train[2][1].startswith("mark")
    everything = [name for session in train for name in session]
    assert [everything.count(name) for name in items.names] == items.counts.tolist()
    assert (np.diff(items.counts) <= 0).all()


def test_examples_stay_within_their_session(data):
    sessions = data.Sessions.of(
        np.array([5, 6, 7, 8, 9], dtype=np.int32), np.array([0, 2, 2, 2, 3])
    )
    assert sessions.asked.tolist() == [2, 3]  # the others have nothing before them
    history, target = sessions.examples(np.array([3, 2, 0]), 3, padding=10)
    assert history.tolist() == [[7, 6, 10], [6, 10, 10], [10, 10, 10]]
    assert target.tolist() == [8, 7, 5]


def test_measures_of_known_ranks(training):
    ranked = torch.arange(100, 200).repeat(5, 1)
    target = torch.tensor([100, 102, 110, 199, 7])  # ranks 1, 3, 11, 100 and none
    rare = torch.tensor([False, True, False, True, True])
    found = training.measure(ranked, target, rare)
    assert found.recall_10 == pytest.approx(2 / 5)
    assert found.recall_100 == pytest.approx(4 / 5)
    assert found.ndcg_10 == pytest.approx((1 + 1 / math.log2(4)) / 5)
    assert found.rare_recall_100 == pytest.approx(2 / 3)


def test_the_head_is_the_fewest_items_with_half_of_the_counts(data, training):
    sessions = data.Sessions.of(np.array([0, 1], dtype=np.int32), np.array([0, 0]))
    for counts, size in (([4, 3, 1], 1), ([4, 4, 4], 2), ([3, 3, 2], 2), ([1], 1)):
        items = data.Items(["?"] * len(counts), np.array(counts), sessions, sessions)
        assert training.head_size(items) == size


@pytest.mark.slow
def test_the_quick_run_beats_popularity(tmp_path):
    command = [sys.executable, str(EXAMPLES / "next_item.py"), "--quick", "--cache", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.split("---\n")[1].split("\n\n")[0].splitlines()
    values = {line[:26].strip(): [float(x) for x in line[26:].split()] for line in lines}
    popular = values["most popular"][0]
    corrected = [name for name in values if name.endswith("logQ")]
    assert len(corrected) == 5
    for name in corrected:
        assert values[name][1] > 1.2 * popular, run.stdout  # recall@10
    uncorrected = values["in-batch, no correction"][1]
    assert values["in-batch, logQ"][1] > 1.5 * uncorrected, run.stdout
    # A few steps of the sigmoids are worth little more than popularity, but not on rare items.
    assert values["uniform, gBCE"][1] > uncorrected, run.stdout
    assert values["uniform, gBCE"][4] > 0.03, run.stdout  # rare recall@100; popularity's is 0


def test_the_ways_share_no_random_state(data, training):
    """Trained alone or beside others, in turns that a clock decides, a way draws the same."""
    rng = np.random.default_rng(0)
    sessions = data.Sessions.of(rng.integers(0, 300, 600).astype(np.int32), np.arange(600) // 6 * 6)
    items = data.Items(["?"] * 300, np.arange(300, 0, -1), sessions, sessions)
    settings = training.Settings(seconds=60, steps=5, batch=32, num_samples=16, width=8)
    ways = {way.name: way for way in training.WAYS}
    chosen = ("in-batch + uniform, logQ", "uniform, gBCE")
    together = training.train(tuple(ways[name] for name in chosen), items, settings)
    for name, result in zip(chosen, together, strict=False):
        alone, _ = training.train((ways[name],), items, settings)
        assert alone.measures == result.measures


def test_a_missing_folder_is_named(tmp_path):
    command = ("examples/next_item.py", "--cache", tmp_path, "--text", "nowhere")
    assert "must be a folder" in refusal(*command)

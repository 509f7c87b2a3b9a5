"""The demo: its text, and a run of a few steps of the real command."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT
from helpers.command_line import refusal

np = pytest.importorskip("numpy")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
pytest.importorskip("typer")

EXAMPLES = ROOT / "examples"


@pytest.fixture
def code_corpus():
    import code_corpus

    return code_corpus


@pytest.fixture
def text(tmp_path):
    """Forty files of Zipf-like words, and one that is not text."""
    folder = tmp_path / "text"
    (folder / ".hidden").mkdir(parents=True)
    (folder / ".hidden" / "secret.txt").write_text("never " * 100)
    (folder / "binary.dat").write_bytes(b"\xff\xfe never " * 100)
    rng = random.Random(0)
    for i in range(40):
        words = [f"w{int(rng.paretovariate(0.7)) % 400}" for _ in range(400)]
        (folder / f"{i}.txt").write_text(f"only{i} " + " ".join(words))
    return folder


def test_classes_fall_in_frequency_and_rare_tokens_are_unknown(code_corpus, text, tmp_path):
    corpus = code_corpus.load_corpus(text, None, tmp_path)
    everything = np.concatenate([corpus.held_out, corpus.train])
    counts = np.bincount(everything, minlength=corpus.num_classes)
    assert (np.diff(counts) <= 0).all()
    unknown = corpus.words.index(code_corpus.UNKNOWN)
    once = [w for w, n in _count_words(text).items() if n == 1]
    assert counts[unknown] == len(once) >= 40  # each file's own word, at least
    assert not set(once) & set(corpus.words)
    assert "never" not in corpus.words  # neither hidden nor binary files are read
    assert (corpus.counts == np.bincount(corpus.train, minlength=corpus.num_classes)).all()


def test_held_out_tokens_come_from_whole_files(code_corpus, text, tmp_path):
    corpus = code_corpus.load_corpus(text, None, tmp_path)
    held_out = [corpus.words[i] for i in corpus.held_out]
    pieces = [path.read_text().split() for path in text.glob("*.txt")]
    starts = [i for i, word in enumerate(held_out) if word == code_corpus.UNKNOWN]
    assert len(held_out) % 401 == 0
    assert starts
    first = held_out[1:401]  # after the word that only this file has
    known = set(corpus.words)
    assert any(
        first == [w if w in known else code_corpus.UNKNOWN for w in piece[1:]] for piece in pieces
    )


def test_classes_can_be_limited(code_corpus, text, tmp_path):
    whole = code_corpus.load_corpus(text, None, tmp_path)
    few = code_corpus.load_corpus(text, 10, tmp_path)
    assert few.num_classes == len(few.words) == 10
    assert few.train.max() < 10
    assert len(few.train) == len(whole.train)
    assert set(few.words) - set(whole.words[:10]) <= {code_corpus.UNKNOWN}
    counts = np.bincount(np.concatenate([few.held_out, few.train]), minlength=10)
    assert (np.diff(counts) <= 0).all()
    unknown = few.words.index(code_corpus.UNKNOWN)
    assert counts[unknown] > np.bincount(whole.train)[10:].sum()  # all the rare ones are in it


def test_windows_pair_each_token_with_its_successor(code_corpus, text, tmp_path):
    corpus = code_corpus.load_corpus(text, None, tmp_path)
    inputs, target = corpus.windows(3, 16)
    assert inputs.shape == target.shape == (3, 16)
    assert (inputs[:, 1:] == target[:, :-1]).all()
    assert inputs[0].tolist() == corpus.held_out[:16].tolist()
    assert target[-1, -1] == corpus.held_out[-1]
    inputs, target = corpus.batch(5, 7, np.random.default_rng(0))
    assert (inputs[:, 1:] == target[:, :-1]).all()


def test_unigram_perplexity_of_known_frequencies(code_corpus):
    import torch

    corpus = code_corpus.Corpus(["a", "b"], np.array([5, 1]), np.array([]), np.array([]))
    assert corpus.unigram_perplexity(torch.tensor([[0, 0]])) == pytest.approx(8 / 6)
    assert corpus.unigram_perplexity(torch.tensor([[0, 1]])) == pytest.approx(math.sqrt(64 / 12))


@pytest.mark.slow
def test_a_few_steps_of_both_runs(text, tmp_path):
    figure = tmp_path / "figure.png"
    run = _demo("--text", text, "--cache", tmp_path, "--plot", figure, "--steps", 30,
                "--num-samples", 64)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert figure.read_bytes().startswith(b"\x89PNG")
    table = run.stdout.split("perplexity\n")[1].split("\n\n")[0]
    rows = {line[:15].strip(): line.split() for line in table.splitlines()}
    unigram = float(rows["unigram model"][-1])
    for kind in ("sampled softmax", "full softmax"):
        assert re.fullmatch(r"[\d.,]+", rows[kind][2])  # ms/step
        assert rows[kind][3] == "30"
        assert math.isfinite(float(rows[kind][-1]))
        assert float(rows[kind][-1]) < 2 * unigram


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--text", "nowhere"], "must be a folder"),
        (["--classes", "1"], "at least 2"),
        (["--seconds", "0"], "--seconds"),
    ],
)
def test_bad_arguments_are_named(arguments, complaint, text, tmp_path):
    command = ("examples/code_lm.py", "--text", text, "--cache", tmp_path)
    assert complaint in refusal(*command, *arguments)


def test_too_little_text_is_refused(code_corpus, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "one.txt").write_text("a b a b")
    with pytest.raises(ValueError, match="found 1 text file"):
        code_corpus.load_corpus(folder, None, tmp_path)
    (folder / "two.txt").write_text("b a b a")
    with pytest.raises(ValueError, match="give more text"):
        code_corpus.load_corpus(folder, None, tmp_path).windows(1, 8)


def _count_words(folder: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path in folder.glob("*.txt"):
        for word in path.read_text().split():
            counts[word] = counts.get(word, 0) + 1
    return counts


def _demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "code_lm.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)

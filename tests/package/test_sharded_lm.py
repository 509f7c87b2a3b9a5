"""The example that trains on some processes and goes on with others."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT
from helpers.command_line import refusal

for module in ("numpy", "tqdm", "typer"):
    pytest.importorskip(module)

SCRIPT = "examples/sharded_lm.py"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Files in which most words follow from the one before them."""
    folder = tmp_path / "text"
    folder.mkdir()
    rng = random.Random(0)
    for i in range(20):
        word, words = i, []
        for _ in range(800):
            word = (7 * word + 3) % 97 if rng.random() < 0.9 else rng.randrange(97)
            words.append(f"w{word}")
        (folder / f"{i}.txt").write_text(" ".join(words))
    return folder


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(text: Path, tmp_path: Path) -> None:
    arguments = ["--text", text, "--cache", tmp_path, "--folder", tmp_path / "saved",
                 "--steps", 15, "--num-samples", 32]  # fmt: skip
    command = [sys.executable, str(ROOT / SCRIPT), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert re.findall(r"(\d) ranks: 98 classes = ([\d +]+) rows", run.stdout) == [
        ("2", "49 + 49"),  # with that of unknown words
        ("3", "33 + 33 + 32"),
    ]
    found = re.findall(r"step +(\d+): held-out loss ([\d.]+)(?:, saved as ([\d.]+))?", run.stdout)
    assert [step for step, _, _ in found] == ["0", "15", "15", "30"], run.stdout
    first, second, again, last = (float(loss) for _, loss, _ in found)
    assert found[2][2] == found[1][1]
    assert again == pytest.approx(second, rel=1e-5)
    assert last < second < first  # it learns on both


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    command = (SCRIPT, "--resume", "--folder", tmp_path / "saved", "--text", tmp_path)
    assert "for --resume to go on from" in refusal(*command)

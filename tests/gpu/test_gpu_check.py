"""make gpu-check, as far as a machine without a GPU can tell."""

from __future__ import annotations

import subprocess
import sys

import gpu_check
import pytest
import torch

from helpers import ROOT


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_step_that_fails_or_hangs_does_not_keep_the_others() -> None:
    show = "import os; print(os.environ['WORD'])"
    steps = [
        gpu_check.Step("fails", python("print('because'); raise SystemExit(3)"), 60),
        gpu_check.Step("hangs", python("import time; time.sleep(60)"), 1),
        gpu_check.Step("is not there", [], 60, missing="no GPU"),
        gpu_check.Step("works", python(show), 60, environment={"WORD": "word"}),
    ]
    outcomes = [gpu_check.run(step, 100.0) for step in steps]
    assert [outcome.verdict for outcome in outcomes] == ["FAILED", "TIMED OUT", "not run", "passed"]
    assert [outcome.failed for outcome in outcomes] == [True, True, False, False]
    text = gpu_check.report("A GPU", "9.0", outcomes)
    assert "because" in text
    assert "| is not there | not run (no GPU) | 0 |" in text
    assert "word" in text
    assert str(ROOT) not in text


def test_what_there_is_no_time_for_is_said() -> None:
    outcome = gpu_check.run(gpu_check.Step("late", python("pass"), 60), 1.0)
    assert (outcome.verdict, outcome.output) == ("not run", "out of time")


def test_all_that_needs_a_gpu_is_named_without_one() -> None:
    missing = {step.name for step in gpu_check.steps("", rehearse=True) if step.missing == "no GPU"}
    sanitizers = {f"compute-sanitizer {tool}" for tool in gpu_check.SANITIZERS}
    assert missing == {"build", "tests on the GPU", "ranks over NCCL", *sanitizers}
    on_gpu = gpu_check.steps("9.0", rehearse=False)
    build = next(step for step in on_gpu if step.name == "build")
    assert build.environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert not [step for step in on_gpu if step.missing and "sanitizer" not in step.name]


def test_its_tests_are_there_and_cover_optimizers_and_ranks() -> None:
    files = gpu_check.gpu_tests()
    commands = [word for step in gpu_check.steps("9.0", rehearse=False) for word in step.command]
    assert set(files) < set(commands)
    assert "tests/optim/test_training.py" in files
    assert "tests/distributed/test_nccl.py" in commands
    for word in commands:
        assert not word.startswith("tests/") or (ROOT / word).is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    command = [sys.executable, "tools/gpu_check.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "sees no GPU" in done.stderr


def test_the_small_steps_are_right_on_the_cpu() -> None:
    command = [sys.executable, "tools/gpu_smoke.py", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "56 cases on cpu: right\n"

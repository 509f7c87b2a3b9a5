"""benchmarks/gpu_model.py: its counts of work, and that nobody can take it for a measurement."""

from __future__ import annotations

import sys

import gpu_model as model
import pytest


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_three_matmuls_in_all(dtype: str) -> None:
    batch, dim, samples = 512, 256, 4096  # whole tiles: no padding
    for gpu in model.GPUS:
        work = list(model.step_work(batch, dim, samples, dtype, gpu))
        assert sum(part.flop for part in work) == 6 * batch * dim * samples
        assert [part.kernel for part in work if part.flop > 0] == [
            "score",
            "input_products",
            "weight_products",
        ]


def test_padding_is_work() -> None:
    work = list(model.step_work(1, 1, 1, "bfloat16", model.GPUS[0]))
    assert sum(part.flop for part in work) == 3 * 2 * 128 * 128 * 32


def test_score_asks_for_what_its_head_comment_states() -> None:
    batch, dim, samples = 256, 64, 1024
    score = next(
        part
        for part in model.step_work(batch, dim, samples, "float32", model.GPUS[0])
        if part.kernel == "score"
    )
    assert score.l2 == 4 * dim * (samples * 2 + batch * 8) + 4 * batch * samples


@pytest.mark.parametrize("dtype", list(model.SIZES))
def test_instructions_are_those_counted(dtype: str) -> None:
    gpu = model.GPUS[0]
    for dim, at in ((512, 0), (128, 1)):
        for work in model.step_work(512, dim, 2048, dtype, gpu):
            multiplies = 2 * 512 * dim * 2048 / model.MULTIPLY_FLOP[dtype]
            units = multiplies if work.flop > 0 else work.l2 / 128
            for when in (model.BEFORE, model.NOW):
                each = work.instructions(dtype, dim, when) / units
                if work.kernel != "score":
                    assert each == pytest.approx(model.COUNTS[dtype][work.kernel][when].each)
                elif dtype == "bfloat16":
                    assert each == pytest.approx([(7.71, 20.60), (3.98, 8.78)][when][at])
    assert gpu.issue == 4 * 108 * 1.41e9


def test_fewer_instructions_never_cost_time() -> None:
    for gpu in model.GPUS:
        for shape in model.SHAPES:
            times = [model.step_time(shape, "bfloat16", gpu, w) for w in (model.NOW, model.BEFORE)]
            assert times[0] <= times[1]


def test_every_sheet_is_labelled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_model.py", "--gpu", "h100"])
    model.main()
    out = capsys.readouterr().out
    sheets = [line for line in out.splitlines() if line.startswith("H100")]
    assert len(sheets) == 6
    assert all(line.endswith("MODEL") for line in sheets)
    assert out.startswith("MODEL")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "1,2"], "three positive numbers"),
        (["--shape", "1,2,x"], "three positive numbers"),
        (["--shape", "1,0,3"], "three positive numbers"),
        (["--gpu", "abacus"], "must be part of one of"),
    ],
)
def test_bad_arguments_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_model.py", *arguments])
    with pytest.raises(SystemExit):
        model.main()
    assert message in capsys.readouterr().err

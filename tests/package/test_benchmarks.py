"""The benchmark scripts run, and what they write can be trusted to say what was measured.

No test here asserts a speed: that is what the scripts themselves are for.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import bench_options
import option_peers
import peers
import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers import ROOT
from helpers.backends import INSTRUCTION_SETS, unavailable
from helpers.samplers import parts

BENCHMARKS = ROOT / "benchmarks"


def run_script(name: str, *options: str, output: Path) -> tuple[str, list[dict[str, str]]]:
    """Runs benchmarks/NAME.py --quick; its output and the rows of its CSV file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--threads", "1"]
    done = subprocess.run(
        [*command, "--output", str(output), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with (output / f"{name}.csv").open(newline="") as file:
        return done.stdout, list(csv.DictReader(file))


def check_rows(rows: list[dict[str, str]]) -> None:
    """Every row says where it was measured; every time is a positive number."""
    assert rows
    for row in rows:
        assert row["torch"] == torch.__version__
        assert row["cpu"]
        assert row["package"]
        assert not any("date" in column for column in row)
        if row.get("median_ms"):
            low, median, high = (float(row[name]) for name in ("p10_ms", "median_ms", "p90_ms"))
            assert 0 < low <= median <= high


@pytest.mark.slow
def test_bench_loss_times_our_step_beside_the_peers(tmp_path: Path) -> None:
    shown, rows = run_script("bench_loss", output=tmp_path)
    check_rows(rows)
    cases = {row["case"]: row for row in rows}
    assert cases["ours"]["role"] == "ours"
    assert float(cases["ours"]["ratio"]) == 1
    assert "B=8 D=16 S=32 C=1000 float32" in shown
    for peer in ("three GEMMs, oneDNN", "eager, sparse gradient", "F.cross_entropy, all classes"):
        assert not cases[peer]["failure"]
        assert float(cases[peer]["median_ms"]) > 0
    assert cases["F.cross_entropy, all classes"]["classes"] == "500"
    # Without replacement every sample is distinct: nothing is merged, nominal = executed.
    assert cases["ours"]["distinct"] == cases["ours"]["samples"] == "32"


@pytest.mark.slow
def test_bench_loss_states_the_share_on_executed_work(tmp_path: Path) -> None:
    """32 draws of 16 classes hold duplicates, which the step merges before its matmuls."""
    options = ("--replacement", "--classes", "16", "--peers", "", "--sampler", "uniform")
    _, rows = run_script("bench_loss", *options, output=tmp_path)
    ours = next(row for row in rows if row["role"] == "ours")
    distinct = int(ours["distinct"])
    assert 8 <= distinct <= 16  # expected: 16 (1 - (15/16)^32) = 14.0
    if ours["share_of_roof"]:
        share, nominal = float(ours["share_of_roof"]), float(ours["share_nominal"])
        assert nominal == pytest.approx(share * 32 / distinct, rel=1e-3)


@pytest.mark.slow
def test_bench_options_has_a_peer_for_every_option(tmp_path: Path) -> None:
    _, rows = run_script("bench_options", output=tmp_path)
    check_rows(rows)
    ours = {row["option"]: row for row in rows if row["role"] == "ours"}
    peers = {row["option"]: row for row in rows if row["case"] == "composed in PyTorch"}
    assert list(ours) == list(peers)
    assert len(ours) > 10
    for option, row in ours.items():
        assert float(row["ratio"]) == 1
        assert float(row["over_softmax"]) > 0
        assert not peers[option]["failure"]


def test_the_peers_of_the_options_compute_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A composition that is timed has to be the loss; both are given the same samples."""
    problem = peers.make_problem(6, 5, 20, 40, torch.float32, "log_uniform")
    for option in bench_options.OPTIONS.values():
        target = peers.zipf_targets(6 * max(1, option.targets), 40).view(6, -1)
        exclude = None
        if option.excluded:
            exclude = peers.zipf_targets(6 * option.excluded, 40, seed=2).view(6, -1)
        samples = ssc.LogUniformSampler(40).sample(target, 20)
        monkeypatch.setattr(option_peers, "draw", lambda *_, samples=samples: parts(samples))
        composed = option_peers.composed_option_loss(problem, target, exclude, **option.arguments)
        ours = ssc.sampled_softmax_loss(
            problem.input,
            problem.weight,
            target,
            samples,
            bias=problem.bias,
            exclude=exclude,
            **option.arguments,
        )
        torch.testing.assert_close(ours, composed, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bench_sample(tmp_path: Path) -> None:
    _, rows = run_script("bench_sample", output=tmp_path)
    check_rows(rows)
    assert {row["sampler"] for row in rows} - {""} == {
        "uniform",
        "log-uniform",
        "weighted",
        "streaming",
        "mixed",
        "in-batch",
        "queue",
    }
    for row in rows:
        assert not row["failure"]
        items_per_us = float(row["items"]) / float(row["median_ms"]) / 1e3
        assert float(row["items_per_us"]) == pytest.approx(items_per_us, rel=1e-2)
    # Each peer stands beside the sampler that offers the same.
    tables: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        tables.setdefault(row["table"], []).append(row)
    for table in tables.values():
        assert table[0]["role"] == "ours"
        assert float(table[0]["ratio"]) == 1
    for case, sampler in (("torch.multinomial", "weighted"), ("torch.randint", "uniform")):
        (row,) = (r for r in rows if r["case"] == case and r["replacement"] == "True")
        assert row["sampler"] == sampler
    builds = [row["case"] for row in tables["A table of 5000 weights"]]
    assert "ours: WeightedSampler(weights)" in builds and "numpy cumsum" in builds


@pytest.mark.slow
def test_plot_samplers_finds_who_is_biased(tmp_path: Path) -> None:
    """The bias of each proposal, and its standard error, from 200 draws with fixed keys."""
    _, rows = run_script("plot_samplers", output=tmp_path)
    assert (tmp_path / "plot_samplers.png").stat().st_size > 10_000
    for row in rows:
        bias, error = float(row["bias"]), float(row["standard_error"])
        assert float(row["deviation"]) == pytest.approx(error * 200**0.5, rel=1e-3)
        if "own counts" in row["proposal"]:  # classes that are not there stand for nothing
            assert bias < -5 * error
        else:
            assert abs(bias) < 4 * error
    assert float(rows[0]["deviation"]) > 3 * float(rows[1]["deviation"])  # uniform, log-uniform


@pytest.mark.slow
def test_bench_memory(tmp_path: Path) -> None:
    _, rows = run_script("bench_memory", output=tmp_path)
    check_rows(rows)
    assert rows[0]["within_bound"] == "True"
    assert float(rows[0]["bound_mib"]) == pytest.approx(64, abs=0.1)


@pytest.mark.slow
def test_bench_optim_times_all_its_tables(tmp_path: Path) -> None:
    _, rows = run_script("bench_optim", output=tmp_path)
    check_rows(rows)
    assert list(dict.fromkeys(row["table"] for row in rows)) == ["step", "training", "classes"]
    steps = [row for row in rows if row["table"] == "step" and row["dtype"] == "float32"]
    assert [row["role"] for row in steps] == ["ours"] * 6 + ["peer"] * 3
    if steps[0]["roof"]:
        assert [row["roof"] for row in steps] == list("121333123")  # weight and states
    training = [row for row in rows if row["table"] == "training"]
    assert {row["beside"] for row in training} == {"torch", "composed", "TensorFlow"}
    assert {row["ratio"] for row in training if row["case"] == "ours, AdamW decay"} == {"1.0"}
    assert not any(row["failure"] for row in training if "TensorFlow" not in row["case"])
    grown = [row for row in rows if row["table"] == "classes" and row["classes"] == "500"]
    assert {row["growth"] for row in grown} == {"1.0"}


@pytest.mark.slow
def test_plot_skipped_shows_that_replay_is_dense(tmp_path: Path) -> None:
    _, rows = run_script("plot_skipped", output=tmp_path)
    check_rows(rows)
    differences = {row["way"]: float(row["largest_difference"]) for row in rows}
    assert differences["replay"] < 1e-6 < 1e-3 < differences["freeze"]
    assert differences["decay"] > 1e-3


def text_folder(parent: Path) -> Path:
    """A folder of small texts."""
    folder = parent / "text"
    folder.mkdir()
    for number in range(30):
        words = (f"w{(number * k * k) % 97}" for k in range(400))
        (folder / f"{number}.txt").write_text(" ".join(words))
    return folder


@pytest.mark.slow
def test_compare_skipped_trains_in_all_ways(tmp_path: Path) -> None:
    options = ("--text", str(text_folder(tmp_path)), "--cache", str(tmp_path), "--rate", "0.05")
    _, rows = run_script("compare_skipped", *options, output=tmp_path)
    check_rows(rows)
    found = {row["skipped"]: float(row["perplexity"]) for row in rows}
    assert list(found) == ["freeze", "decay", "replay", "dense"]
    assert found["replay"] == pytest.approx(found["dense"], rel=1e-3)
    assert found["freeze"] != found["dense"]


@pytest.mark.slow
def test_compare_equal_time_trains_both_for_as_long(tmp_path: Path) -> None:
    options = ("--text", str(text_folder(tmp_path)), "--cache", str(tmp_path), "--seeds", "1")
    _, rows = run_script("compare_equal_time", *options, output=tmp_path)
    check_rows(rows)
    assert [row["optimizer"] for row in rows] == ["ssc.optim.Adagrad"] * 4 + [
        "torch.optim.Adagrad"
    ] * 4
    assert len({row["cpu_seconds"] for row in rows}) == 4
    assert all(int(row["steps"]) > 0 for row in rows[3::4])


@pytest.mark.slow
def test_bench_distributed_shares_and_bytes(tmp_path: Path) -> None:
    _, rows = run_script("bench_distributed", output=tmp_path)
    check_rows(rows)
    ours = [row for row in rows if row["case"] == "ours, gather"]
    assert {row["ranks"] for row in ours} == {"1", "2"}
    for row in ours:
        # Tiny shapes: the numbers of rows that the model leaves out are a tenth.
        assert row["ranks"] == "1" or 0.9 < float(row["sent_over_model"]) < 1.2
    assert {row["table"] for row in rows} == {"ranks", "crossover"}


@pytest.mark.slow
def test_bench_per_row(tmp_path: Path) -> None:
    _, rows = run_script("bench_per_row", output=tmp_path)
    check_rows(rows)
    timed = [row for row in rows if row["case"]]
    assert [row["role"] for row in timed[:3]] == ["part", "part", "ours"]
    for row in timed:  # a share is the gather's time over a case's
        assert float(row["share"]) == pytest.approx(1 / float(row["ratio"]), rel=1e-2)
    assert min(float(row["ratio"]) for row in timed if row["role"] == "part") == 1
    assert rows[-1]["within_bound"] == "True"


@pytest.mark.slow
def test_bench_scale(tmp_path: Path) -> None:
    _, rows = run_script("bench_scale", output=tmp_path)
    check_rows(rows)
    assert [row["classes"] for row in rows] == ["100", "1000"]
    assert float(rows[0]["growth"]) == 1
    for row in rows:
        assert float(row["bound_mib"]) == pytest.approx(64, abs=0.1)
        assert float(row["extra_mib"]) >= 0


@pytest.mark.slow
def test_bench_stages(tmp_path: Path) -> None:
    _, rows = run_script("bench_stages", output=tmp_path)
    assert rows[0]["case"] == "step"
    stages = [row for row in rows if row["role"] == "stage"]
    assert sum(int(row["samples"]) for row in stages) == int(rows[0]["samples"])


@pytest.mark.slow
def test_bench_isa_compares_every_set_with_the_automatic_choice(tmp_path: Path) -> None:
    options = ("--dtype", "bfloat16", "--only", "step,draw uniform", "--repetitions", "1")
    shown, rows = run_script("bench_isa", *options, output=tmp_path)
    check_rows(rows)
    assert "automatic: " in shown
    timed = [row for row in rows if row["operator"].startswith(("step", "draw"))]
    for name in {row["operator"] for row in timed}:
        group = [row for row in timed if row["operator"] == name]
        sets = [isa for isa in INSTRUCTION_SETS[1:] if not unavailable(isa)]
        assert [row["case"] for row in group] == ["automatic", *sets]
        assert float(group[0]["ratio"]) == 1
    assert {"step", "step, 4 rows", "draw uniform, distinct"} <= {row["operator"] for row in timed}


@pytest.mark.slow
def test_bench_isa_times_float32_in_each_precision(tmp_path: Path) -> None:
    options = ("--dtype", "float32,float64", "--precision", "high,medium", "--repetitions", "1")
    shown, rows = run_script("bench_isa", *options, "--only", "exact", output=tmp_path)
    check_rows(rows)
    timed = [(row["dtype"], row["precision"]) for row in rows if row["operator"] == "exact"]
    assert dict.fromkeys(timed) == dict.fromkeys(
        [("float32", "high"), ("float32", "medium"), ("float64", "highest")]
    )
    assert "exact, float32 in medium precision" in shown


@pytest.mark.slow
def test_bench_gpu_runs_all_its_parts_on_the_cpu(tmp_path: Path) -> None:
    out, rows = run_script("bench_gpu", "--device", "cpu", output=tmp_path)
    check_rows(rows)
    by_case = {row["case"]: row for row in rows}
    assert float(by_case["roof: copy"]["gb_per_s"]) > 0
    ours = by_case["ours"]
    flop = 6 * int(ours["batch"]) * int(ours["width"]) * int(ours["samples"])
    seconds = float(ours["median_ms"]) * 1e-3
    assert float(ours["tflops"]) == pytest.approx(flop / seconds / 1e12, rel=1e-3)
    assert "B=16 D=16 S=32" in out

"""The harness of the benchmarks and the roofs: who is timed when, and what is divided by what."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import harness
import native
import pytest
import roof
import torch


def test_contenders_take_turns() -> None:
    """A load that slows the machine for a while hits all contenders, so none is timed en bloc."""
    order: list[str] = []

    def contender(name: str):
        def run() -> None:
            order.append(name)
            time.sleep(0.06)  # one call per block, no warm call before it

        return harness.Case(name, run)

    timings = harness.measure([contender("a"), contender("b")], repetitions=3)
    assert order[-6:] == ["a", "b"] * 3
    assert [len(timing.seconds) for timing in timings] == [3, 3]


def test_ratios_are_paired_by_repetition() -> None:
    """A slow spell in the middle of the run does not move the ratio of two contenders."""
    ours = harness.Timing(harness.Case("ours", lambda: None, role="ours"))
    peer = harness.Timing(harness.Case("peer", lambda: None))
    ours.seconds = [1.0, 10.0, 10.0]
    peer.seconds = [2.0, 20.0, 20.0]
    rows = harness.rows_from([peer, ours], {})
    assert [row["ratio"] for row in rows] == [2.0, 1.0]
    peer.seconds = [2.0]  # a slow peer that took one turn only
    assert harness.paired_ratio(peer, ours) == 2.0


def test_share_of_the_roof_is_paired_with_its_block() -> None:
    case = harness.Case("ours", lambda: None, role="ours", work=80.0, roof_kind="avx2")
    timing = harness.Timing(case, seconds=[1.0, 2.0, 1.0], roof_rates=[100.0, 50.0, 160.0])
    assert timing.roof_shares() == [0.8, 0.8, 0.5]
    (row,) = harness.rows_from([timing], {})
    assert row["share_of_roof"] == 0.8


def test_bfloat16_has_a_roof_of_its_own_where_it_is_multiplied_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(roof.Roof, "available", lambda _, kind: kind not in roof.OF_BFLOAT16)
    machine = roof.Roof.__new__(roof.Roof)  # nothing is measured
    assert machine.kind_for("avx512_bf16", "bfloat16") == "avx512_bf16"
    assert machine.kind_for("avx512_bf16", "float32") == "avx512"
    assert machine.kind_for("amx_bf16", "bfloat16") == "amx_bf16"
    assert machine.kind_for("amx_bf16", "float32") == "avx512"
    assert machine.kind_for("avx512", "bfloat16") == "avx512"
    assert machine.kind_for("avx2", "bfloat16") == "avx2"
    assert machine.kind_for("reference", "bfloat16") == "avx512"


def test_a_peer_that_cannot_run_is_a_row_with_the_reason() -> None:
    def absent() -> None:
        raise ImportError("no such peer")

    ours = harness.Case("ours", lambda: None, role="ours")
    rows = harness.rows_from(harness.measure([ours, harness.Case("peer", absent)], 2), {})
    assert rows[1]["failure"] == "ImportError: no such peer"
    assert rows[1]["median_ms"] == ""
    with pytest.raises(ImportError, match="no such peer"):  # but ours must run
        harness.measure([harness.Case("ours", absent, role="ours")], 1)


def test_settings_hold_for_the_case_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSC_CPU_ISA", raising=False)
    seen: set[tuple[int, str | None]] = set()
    threads = torch.get_num_threads()

    def run() -> None:
        seen.add((torch.get_num_threads(), os.environ.get("SSC_CPU_ISA")))

    harness.measure([harness.Case("a", run, threads=2, env={"SSC_CPU_ISA": "scalar"})], 1)
    assert seen == {(2, "scalar")}
    assert torch.get_num_threads() == threads
    assert "SSC_CPU_ISA" not in os.environ


def test_csv_has_the_union_of_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.csv"
    harness.write_csv(path, [{"a": 1, "b": 2}, {"a": 3, "c": 4}])
    assert path.read_text() == "a,b,c\n1,2,\n3,,4\n"


def test_missing_numbers_are_empty_cells() -> None:
    (row,) = harness.rows_from([harness.Timing(harness.Case("never ran", lambda: None))], {})
    assert row["median_ms"] == row["ratio"] == row["share_of_roof"] == ""
    assert math.isnan(harness.Timing(harness.Case("never ran", lambda: None)).median)


def test_roof_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says so, and the benchmarks go on with ratios alone."""
    monkeypatch.setattr(native, "compiler", lambda: None)
    assert roof.load_roof() is None
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "no C++ compiler" in message


def test_roof_of_a_foreign_instruction_set_is_an_error() -> None:
    loaded = roof.load_roof()
    if loaded is None:
        pytest.skip("no C++ compiler")
    assert loaded.available("scalar")
    for kind in roof.KINDS:
        if loaded.available(kind):
            assert loaded.rate(kind, threads=1, seconds=1e-4, warm=0) > 0
        else:
            with pytest.raises(ValueError, match=kind):
                loaded.rate(kind, threads=1)


def test_the_rows_roof_changes_no_value() -> None:
    """Any bits stay: NaNs, and rows that are wider or narrower than the gradient's."""
    loaded = roof.load_roof()
    if loaded is None:
        pytest.skip("no C++ compiler")
    bits = torch.randint(-(2**63), 2**63 - 1, (50, 16), generator=torch.Generator().manual_seed(0))
    arrays = [bits.clone(), bits[:, :8].clone()]
    ids = torch.tensor([3, 7, 49])
    assert loaded.change_rows(arrays, bits[:3, :8].clone(), ids, 2, (2, 100), warm=0.0) > 0
    assert torch.equal(arrays[0], bits) and torch.equal(arrays[1], bits[:, :8])
    with pytest.raises(ValueError, match="64 bytes"):
        loaded.change_rows([torch.zeros(50, 3)], bits[:3], ids, 1, (0, 0))

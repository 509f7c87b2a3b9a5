"""CPU seconds of each folder of tests, processes that a test starts included; printed where
--durations is, because the time on the wall says little on a machine that others use too."""

from __future__ import annotations

import os
from collections import defaultdict

import pytest

_at_last_report = 0.0
_folders: defaultdict[str, float] = defaultdict(float)


def _used() -> float:
    return sum(os.times()[:4])


def pytest_collection_finish() -> None:
    global _at_last_report
    _at_last_report = _used()


@pytest.hookimpl(tryfirst=True)  # reports copy the properties
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    global _at_last_report
    if call.when == "teardown":
        before, _at_last_report = _at_last_report, _used()
        item.user_properties.append(("cpu_seconds", _at_last_report - before))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        first, *rest = report.nodeid.split("/")
        folder = f"{first}/{rest[0]}" if first == "tests" else first
        _folders[folder] += dict(report.user_properties)["cpu_seconds"]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.option.durations is None:
        return
    terminalreporter.section("CPU seconds of each folder")
    for folder, seconds in sorted(_folders.items(), key=lambda item: -item[1]):
        terminalreporter.line(f"{seconds:8.1f} {folder}")

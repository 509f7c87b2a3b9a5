"""Scripts that refuse their command line, run in this process."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from unittest import mock

import pytest

from . import ROOT


def refusal(script: str, *arguments: object) -> str:
    """The message with which a script ends while it reads its arguments, its lines joined.

    A process of its own would take seconds to import torch; an error with a traceback is raised.
    """
    command = [str(ROOT / script), *map(str, arguments)]
    errors = io.StringIO()
    with (
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as end,
    ):
        runpy.run_path(command[0], run_name="__main__")
    assert end.value.code == 2
    return " ".join(errors.getvalue().replace("│", " ").split())

"""Command lines of benchmarks, tools and examples: an unknown choice ends in one line that lists
the known ones."""

from __future__ import annotations

from argparse import ArgumentTypeError

import arguments
import pytest

from helpers.command_line import refusal


def test_names() -> None:
    parse = arguments.names(("nce", "nce, 4 targets", "full"))
    assert parse("full, nce") == ("full", "nce")
    assert parse("nce, 4 targets,full") == ("nce, 4 targets", "full")
    assert parse("") == ()
    with pytest.raises(ArgumentTypeError, match="no 'fulll' here; there are: nce; nce, 4 targets;"):
        parse("nce,fulll")


def test_numbers() -> None:
    assert arguments.shape("8,16,32") == (8, 16, 32)
    assert arguments.numbers("1,100") == (1, 100)
    for text in ("8,16", "8,16,0", "8,16,x", "1,2,3,4", ""):
        with pytest.raises(ArgumentTypeError, match="three positive numbers B,D,S, got"):
            arguments.shape(text)
    for text, message in (("0", "at least 1, got 0"), ("1e6", "an integer, got '1e6'")):
        with pytest.raises(ArgumentTypeError, match=message):
            arguments.positive(text)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("benchmarks/bench_loss.py --peers mm,cublas", "no 'cublas' here; there are: onednn; mm;"),
        ("benchmarks/bench_loss.py --isa sse", "avx2; avx512; avx512_bf16; amx_bf16"),
        ("benchmarks/bench_loss.py --dtype int8", "choose from"),
        ("benchmarks/bench_options.py --only hinge", "no 'hinge' here; there are: softmax;"),
        ("benchmarks/bench_scale.py --classes 10,x", "must be an integer, got 'x'"),
        ("benchmarks/bench_stages.py --shape 1,2", "three positive numbers"),
        ("benchmarks/bench_sample.py --batch 0", "must be at least 1, got 0"),
        ("benchmarks/bench_per_row.py --threads 0", "must be at least 1, got 0"),
        ("benchmarks/gpu_model.py --dtype int8", "choose from"),
        ("tools/gpu_smoke.py --device gpu", "choose from"),
        ("examples/cntk_toy.py --runs 0", "--runs must be at least 1, got 0"),
        ("examples/code_lm.py --sampler zipf", "'log_uniform'"),
    ],
)
def test_unknown_choices(command: str, message: str) -> None:
    script, *rest = command.split()
    assert message in refusal(script, *rest)

"""Time of a whole training step with each loss and each option: draw, forward, backward with
row-sparse gradients.

The kernels are those of the plain sampled softmax, so the nominal work is the same 6·B·S·D
(bench_loss.py) and the question is what an option adds: `over_softmax` is our time over that of our
plain step in the same repetition. `ratio` is a contender's time over ours with the same option; the
peers are the loss composed of PyTorch's ops and, where it can be imported and has the loss,
TensorFlow. They draw with replacement, which is cheaper; we draw distinct classes.

    python benchmarks/bench_options.py
    python benchmarks/bench_options.py --shape 128,128,8192 --only nce,softcap
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import arguments
import torch
from harness import (
    Case,
    Row,
    digits,
    environment,
    isa_in_use,
    measure,
    paired_ratio,
    parser,
    print_rows,
    rows_from,
    write_csv,
)
from option_peers import composed_option_step
from peers import Problem, Step, make_problem, tensorflow_step, zipf_targets
from roof import Roof, load_roof

import sampled_softmax_cuda as ssc

TABLE = ("case", "median_ms", "p10_ms", "p90_ms", "ratio", "over_softmax", "share_of_roof")
TABLE += ("failure",)
PLAIN = "softmax"


@dataclass(frozen=True)
class Option:
    """Arguments of the loss; `targets` per row (0: target [B]) and classes to `exclude`.

    tensorflow: the function of tf.nn that computes this loss.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    targets: int = 0
    excluded: int = 0
    tensorflow: str = ""


OPTIONS = {
    PLAIN: Option(tensorflow="sampled_softmax_loss"),
    "4 targets": Option(targets=4, tensorflow="sampled_softmax_loss"),
    "20 excluded": Option(excluded=20),
    "nce": Option({"objective": "nce"}, tensorflow="nce_loss"),
    "nce, 4 targets": Option({"objective": "nce"}, targets=4, tensorflow="nce_loss"),
    "negative sampling": Option({"objective": "negative_sampling"}),
    "gbce": Option({"objective": "gbce"}),
    "softcap": Option({"softcap": 30.0}),
    "label smoothing": Option({"objective": ssc.Softmax(label_smoothing=0.1)}),
    "CosFace": Option(
        {"cosine": True, "objective": ssc.Softmax(margin=0.35), "temperature": 1 / 64}
    ),
    "ArcFace": Option(
        {"cosine": True, "objective": ssc.Softmax(angular_margin=0.5), "temperature": 1 / 64}
    ),
}


def our_step(
    problem: Problem, target: torch.Tensor, exclude: torch.Tensor | None, option: Option
) -> Step:
    sampler = ssc.LogUniformSampler(problem.num_classes)

    def step() -> None:
        samples = sampler.sample(target, problem.num_samples, replacement=False)
        ssc.sampled_softmax_loss(
            problem.input,
            problem.weight,
            target,
            samples,
            bias=problem.bias,
            sparse_grad=True,
            exclude=exclude,
            **option.arguments,
        ).backward()
        problem.drop_gradients()

    return step


def cases_of(problem: Problem, name: str, roof: Roof | None, threads: int) -> list[Case]:
    """Ours, the composition, and TensorFlow if it has this loss; one column says the option."""
    option = OPTIONS[name]
    rows, classes = problem.input.shape[0], problem.num_classes
    target = problem.target
    if option.targets:
        target = zipf_targets(rows * option.targets, classes).view(rows, option.targets)
    exclude = None
    if option.excluded:
        exclude = zipf_targets(rows * option.excluded, classes, seed=2).view(rows, option.excluded)
    work = 6.0 * problem.input.numel() * problem.num_samples
    kind = roof.kind_for(isa_in_use(), "float32") if roof else None
    composed = composed_option_step(problem, target, exclude, **option.arguments)
    cases = [
        Case("ours", our_step(problem, target, exclude, option), "ours", work, kind, threads),
        Case("composed in PyTorch", composed, "peer", work, kind, threads, max_repetitions=7),
    ]
    if option.tensorflow:
        try:
            step = tensorflow_step(problem, threads, target, option.tensorflow)
        except ImportError:
            return cases
        cases.append(Case("TensorFlow", step, "peer", work, kind, threads, max_repetitions=7))
    return cases


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", metavar="B,D,S", type=arguments.shape, default=(512, 256, 4096))
    options.add_argument("--classes", type=arguments.positive, default=1_000_000, help="C")
    options.add_argument(
        "--only", metavar="A,B", type=arguments.names(OPTIONS), help=f"of {'; '.join(OPTIONS)}"
    )
    args = options.parse_args()
    shape = (8, 16, 32) if args.quick else args.shape
    classes = 1000 if args.quick else args.classes
    torch.set_num_threads(args.threads)
    roof = load_roof()
    problem = make_problem(*shape, classes, torch.float32, "log_uniform")
    names = list(dict.fromkeys([PLAIN, *(args.only or OPTIONS)]))
    cases = {name: cases_of(problem, name, roof, args.threads) for name in names}
    # All take turns, so that options can be compared with each other.
    timings = iter(
        measure(
            [case for part in cases.values() for case in part],
            args.repetitions or (2 if args.quick else 15),
            roof,
        )
    )
    config = dict(zip(("batch", "width", "samples"), shape, strict=True))
    rows: list[Row] = []
    plain = None
    for name, part in cases.items():
        own = [next(timings) for _ in part]
        plain = plain or own[0]
        added = rows_from(own, {**config, "classes": classes, "option": name})
        added[0]["over_softmax"] = digits(paired_ratio(own[0], plain))
        print_rows(name, added, TABLE)
        rows += added
    constants = environment()
    write_csv(args.output / "bench_options.csv", [{**row, **constants} for row in rows])


if __name__ == "__main__":
    main()

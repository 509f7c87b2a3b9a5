"""Samplers' state: meta devices, copies, casts, averages, state_dicts."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import sampled_softmax_cuda as ssc
from helpers.sampler_states import (
    ALL,
    MAKERS,
    TARGET,
    C,
    assert_same,
    counted,
    differ,
    numbers,
    other,
    queue,
    state_tensors,
    tensorflows_unigram,
    weighted,
)
from helpers.samplers import zipf

# --- meta -----------------------------------------------------------------------------------------


@ALL
def test_deferred_initialisation_keeps_the_values(either: str, kind: str) -> None:
    expected = numbers(MAKERS[kind]())
    sampler = MAKERS[kind]()
    model = nn.ModuleList([sampler, nn.Linear(2, 2)]).to("meta")
    assert all(t.is_meta for t in state_tensors(sampler).values())
    model.half()
    model.to_empty(device="cpu")
    assert_same(numbers(sampler), expected)
    sampler.to("meta").to("cpu")
    assert_same(numbers(sampler), expected)
    sampler.to_empty(device="cpu")
    assert_same(numbers(sampler), expected)


@ALL
def test_a_head_on_meta(either: str, kind: str) -> None:
    sampler = MAKERS[kind]()
    if not isinstance(sampler, ssc.Sampler):
        pytest.skip("not a sampler of the loss")
    expected = numbers(MAKERS[kind]())
    head = ssc.SampledSoftmaxLoss(4, C, 12, sampler=sampler, device="meta")
    head.to_empty(device="cpu")
    head.reset_parameters()
    assert_same(numbers(head.sampler), expected)
    head(torch.randn(4, 4), TARGET).backward()


KNOWN: dict[str, Callable[[], nn.Module]] = {
    "counted": lambda: ssc.StreamingSampler(C),
    "intervals": lambda: ssc.InBatchSampler(
        ssc.StreamingSampler(C, mode="interval", num_buckets=64)
    ),
    "queue": lambda: ssc.QueueSampler(5, num_classes=C),
    "tf learned": lambda: ssc.tf.LearnedUnigram(C),
    "tf list": lambda: ssc.tf.fixed_unigram_sampler(3, unigrams=[1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_known_values_come_from_meta(either: str, kind: str) -> None:
    with torch.device("meta"):
        sampler = KNOWN[kind]()
    assert state_tensors(sampler)
    assert all(t.is_meta for t in state_tensors(sampler).values())
    sampler.to_empty(device="cpu")
    expected = state_tensors(KNOWN[kind]())
    for name, tensor in state_tensors(sampler).items():
        assert torch.equal(tensor, expected[name]), name


def weighted_on_meta() -> ssc.WeightedSampler:
    with torch.device("meta"):
        return ssc.WeightedSampler(torch.rand(C))


@pytest.mark.parametrize("leave", ["stay", "to_empty", "to"])
def test_weights_without_values_are_refused(either: str, leave: str) -> None:
    sampler = weighted_on_meta()
    if leave == "to_empty":
        sampler.to_empty(device="cpu")
    elif leave == "to":
        sampler.to("cpu")
    ids = TARGET.to(sampler.table.device)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: sampler.num_drawable,
        lambda: sampler.log_prob(ids),
        lambda: sampler.sample(ids, 3),
        lambda: sampler.sample_keyed(ids, 3),
        lambda: sampler.log_expected_count(ids, 3, replacement=False),
        lambda: ssc.InBatchSampler(sampler).sample(ids, 3),
        lambda: ssc.MixedSampler([sampler]).sample(ids, 3),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match=r"no values yet.*load_state_dict.*update\(weights"):
            call()


@pytest.mark.parametrize("how", ["load", "assign", "to_empty, load", "to_empty, update", "update"])
def test_weights_get_values(either: str, how: str) -> None:
    expected, state = numbers(weighted()), weighted().state_dict()
    sampler = weighted_on_meta()
    if how.startswith("to_empty"):
        sampler.to_empty(device="cpu")
    if how.endswith("load"):
        sampler.load_state_dict(state)
    elif how == "assign":
        sampler.load_state_dict(state, assign=True)
    else:
        sampler.update(zipf(C))
    if how in ("load", "update"):
        assert sampler.table.is_meta
        assert sampler.num_drawable == C
        sampler.to_empty(device="cpu")
    assert_same(numbers(sampler), expected)


@ALL
@pytest.mark.parametrize("assign", [True, False])
def test_a_state_dict_goes_into_a_sampler_on_meta(either: str, kind: str, assign: bool) -> None:
    state = other(kind).state_dict()
    sampler = MAKERS[kind]().to("meta")
    sampler.load_state_dict(state, assign=assign)
    if not assign:
        sampler.to_empty(device="cpu")
    assert_same(numbers(sampler), numbers(other(kind)))
    # A state_dict of meta tensors has no values: the sampler keeps its own.
    sampler.to("meta").load_state_dict(sampler.state_dict())
    sampler.to("cpu").load_state_dict(copy.deepcopy(sampler).to("meta").state_dict(), assign=True)
    assert_same(numbers(sampler.to("cpu")), numbers(other(kind)))


def test_a_plan_is_made_of_real_numbers_in_a_meta_context(either: str) -> None:
    for sampler in (ssc.LogUniformSampler(20_000), ssc.UniformSampler(C), weighted()):
        expected = copy.deepcopy(sampler).log_expected_count(TARGET, 9, replacement=False)
        with torch.device("meta"):
            got = sampler.log_expected_count(TARGET, 9, replacement=False)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("replacement", [True, False])
def test_a_graph_of_no_values_is_refused(native: None, replacement: bool) -> None:
    torch.compiler.reset()
    sampler = weighted_on_meta().to_empty(device="cpu")
    compiled = torch.compile(
        lambda target: sampler.sample(target, 12, replacement=replacement),
        fullgraph=True,
        backend="aot_eager",
    )
    with pytest.raises(Exception, match=r"no values yet.*load_state_dict"):
        compiled(TARGET)
    sampler.update(zipf(C))
    assert compiled(TARGET).ids.shape == (12,)


# --- copies and casts -----------------------------------------------------------------------------


@ALL
def test_copies_have_a_state_of_their_own(either: str, kind: str) -> None:
    sampler = MAKERS[kind]()
    expected = numbers(sampler)
    file = io.BytesIO()
    torch.save(sampler, file)
    file.seek(0)
    copies = (
        copy.deepcopy(sampler),
        pickle.loads(pickle.dumps(sampler)),
        torch.load(file, weights_only=False),
    )
    before = {name: t.clone() for name, t in state_tensors(sampler).items()}
    for twin in copies:
        assert_same(numbers(twin), expected)
        twin.load_state_dict(other(kind).state_dict())
        assert_same(numbers(twin), numbers(other(kind)))
    for name, tensor in state_tensors(sampler).items():
        assert torch.equal(tensor, before[name])
    assert_same(numbers(sampler), expected)


@ALL
def test_casts_touch_nothing(either: str, kind: str) -> None:
    sampler = MAKERS[kind]()
    expected, before = numbers(sampler), state_tensors(sampler)
    model = nn.ModuleList([sampler, nn.Linear(2, 2)])
    model.half().type(torch.float32).to(torch.bfloat16).double()
    after = state_tensors(sampler)
    assert all(after[name] is before[name] for name in before)
    assert_same(numbers(sampler), expected)
    model.share_memory()
    assert all(t.is_shared() for t in state_tensors(sampler).values())
    assert_same(numbers(sampler), expected)


@ALL
def test_averaged_models_draw_right(either: str, kind: str) -> None:
    sampler = MAKERS[kind]()
    expected = numbers(sampler)
    model = nn.ModuleList([sampler, nn.Linear(2, 2)])
    average = AveragedModel(model, use_buffers=True, multi_avg_fn=None)
    for _ in range(3):
        sampler.load_state_dict(other(kind).state_dict())
        average.update_parameters(model)
    assert_same(numbers(average.module[0]), expected)
    assert_same(numbers(sampler), numbers(other(kind)))


# --- state_dicts ----------------------------------------------------------------------------------


KEYS = {
    "weighted": {"table", "probability_bits"},
    "counted": {f"stream.{name}" for name in ("counts", "total", "pending")}
    | {"stream.table.table", "stream.table.probability_bits"},
    "queue": {"queue", "num_pushed"},
    "tf learned": {"counts"},
}


@ALL
@pytest.mark.parametrize("assign", [True, False])
def test_state_dicts(either: str, kind: str, assign: bool) -> None:
    source, sampler = other(kind), MAKERS[kind]()
    state = source.state_dict()
    assert kind not in KEYS or set(state) == KEYS[kind]
    assert set(state) == set(state_tensors(source))
    assert set(dict(sampler.named_buffers())) == set()
    assert differ(numbers(sampler), numbers(source))
    assert not any(sampler.load_state_dict(state, assign=assign))
    assert_same(numbers(sampler), numbers(source))
    first = next(iter(state))
    with pytest.raises(RuntimeError, match=f'Missing key.*"{first}"'):
        sampler.load_state_dict({name: t for name, t in state.items() if name != first})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"nothing"'):
        sampler.load_state_dict({**state, "nothing": torch.ones(1)})
    keys = sampler.load_state_dict({"nothing": torch.ones(1)}, strict=False)
    assert keys.unexpected_keys == ["nothing"]
    assert set(keys.missing_keys) == set(state)
    assert_same(numbers(sampler), numbers(source))
    with pytest.raises(RuntimeError, match=f"size mismatch for {first}: copying a param with"):
        sampler.load_state_dict({**state, first: torch.ones(3, dtype=torch.int64)})
    with pytest.raises(RuntimeError, match=f"dtype mismatch for {first}.*float32"):
        sampler.load_state_dict({**state, first: state[first].float()})
    with pytest.raises(RuntimeError, match=f'"{first}", expected torch.Tensor'):
        sampler.load_state_dict({**state, first: 3})
    assert_same(numbers(sampler), numbers(source))


@ALL
def test_state_that_is_not_persistent(either: str, kind: str) -> None:
    sampler = MAKERS[kind](persistent=False)
    assert_same(numbers(sampler), numbers(MAKERS[kind]()))
    assert sampler.state_dict() == {}
    assert not any(sampler.load_state_dict({}))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        sampler.load_state_dict(MAKERS[kind]().state_dict())
    assert_same(numbers(copy.deepcopy(sampler).to("meta").to("cpu")), numbers(MAKERS[kind]()))
    with pytest.raises(TypeError, match="persistent must be a bool, got int"):
        MAKERS[kind](persistent=1)


def test_a_sampler_put_on_a_loaded_module() -> None:
    checkpoint = ssc.SampledSoftmaxLoss(4, C, 12).state_dict()
    for sampler in (weighted(persistent=False), counted(persistent=False)):
        head = ssc.SampledSoftmaxLoss(4, C, 12, sampler=sampler)
        assert not any(head.load_state_dict(checkpoint))
        assert set(head.state_dict()) == set(checkpoint)


def replaced(sampler: nn.Module, **values: Any) -> dict[str, Any]:
    state = {name: tensor.clone() for name, tensor in sampler.state_dict().items()}
    for name, value in values.items():
        key = next(k for k in state if k.rpartition(".")[2] == name)
        state[key] = value(state[key])
    return state


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.double().view(torch.int64)


BAD: list[tuple[Callable[[], nn.Module], str, dict[str, Any]]] = [
    (weighted, "must name classes in", {"table": lambda t: t | 63}),
    (weighted, "not that of its probabilities", {"table": lambda t: t.roll(1)}),
    (weighted, "not that of its probabilities", {"table": torch.zeros_like}),
    (
        weighted,
        r"finite and not negative, got nan at \[0\]",
        {"probability_bits": lambda t: bits(torch.full((C,), torch.nan))},
    ),
    (
        weighted,
        r"finite and not negative, got inf at \[0\]",
        {"probability_bits": lambda t: bits(torch.full((C,), torch.inf))},
    ),
    (
        weighted,
        r"finite and not negative, got -1.0 at \[1\]",
        {"probability_bits": lambda t: bits(torch.eye(C)[0] - torch.eye(C)[1])},
    ),
    (weighted, "must sum to 1, got 50", {"probability_bits": lambda t: bits(torch.ones(C))}),
    (weighted, "all 50 probabilities are 0", {"probability_bits": torch.zeros_like}),
    (
        weighted,
        "not that of its probabilities",  # a class of q = 0 would be drawn
        {"probability_bits": lambda t: bits(torch.eye(C)[0])},
    ),
    (counted, "counts must not be negative", {"counts": torch.neg}),
    (counted, "pending must not be negative", {"pending": lambda t: t - 10**6}),
    (queue, r"queue must hold classes in \[0, num_classes=50\), or -1, got 99", {
        "queue": lambda t: t + 50
    }),
    (queue, "num_pushed must not be negative", {"num_pushed": torch.neg}),
    (tensorflows_unigram, "a sum of 0", {"counts": torch.zeros_like}),
    (
        lambda: ssc.StreamingSampler(C, mode="interval", num_buckets=8),
        "gaps must be finite",
        {"gap_bits": lambda t: t - 1},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message", "values"), BAD)
def test_what_can_not_be_right_is_not_loaded(
    either: str, make: Callable[[], nn.Module], message: str, values: dict[str, Any]
) -> None:
    sampler = make()
    before = {name: t.clone() for name, t in state_tensors(sampler).items()}
    with pytest.raises(RuntimeError, match=message):
        sampler.load_state_dict(replaced(sampler, **values))
    for name, tensor in state_tensors(sampler).items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    "weights",
    [
        zipf(1),
        torch.tensor([0.0, 2.0]),
        zipf(100_003, 3.0),
        torch.exp(torch.linspace(-700, 0, 3000, dtype=torch.float64)),
        torch.cat((torch.ones(1), torch.full((70_000,), 1e-30))),
        torch.arange(70_000) % 3,
    ],
)
def test_every_table_passes_its_check(native: None, weights: torch.Tensor) -> None:
    sampler = ssc.WeightedSampler(weights)
    twin = copy.deepcopy(sampler)
    assert twin.num_drawable == int((weights > 0).sum())

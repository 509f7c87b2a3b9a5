"""The head under DistributedDataParallel and fully_shard: two processes over gloo, started once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import multiprocessing, nn

import sampled_softmax_cuda as ssc
from helpers import ddp_process
from helpers.backends import unavailable

_LIMIT = 300  # seconds; it takes 20 on cores of its own

Results = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The findings of both processes in a case."""
    reason = unavailable("scalar")
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("ddp")
    context = multiprocessing.spawn(ddp_process.run, (folder,), nprocs=2, join=False)
    end = time.monotonic() + _LIMIT
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail(f"the two processes were not through after {_LIMIT} s")
    found = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return lambda case: [of_rank[case] for of_rank in found]


# The cases of training in which torch leaves no way, with what the error says.
REFUSED = {
    "own parameter": "RuntimeError: .* expects a dense gradient of weight.* Register such a module",
    "float16": "RuntimeError: .* torch adds no sparse gradients in float16",
    # Errors of torch's own; docs/sparse_gradients.md says what to do.
    "fp16_compress_hook": "cadd_sparse.* not implemented for 'Half'",
    "tied, linear last": "Expected variable to have sparse gradient",
}
DENSE = ("dense", "dense, per row", "float16, dense", "tied, linear first")


@pytest.mark.parametrize("case", [name for name in ddp_process.TRAINING if name not in REFUSED])
def test_gradients_are_the_average_over_the_processes(results: Results, case: str) -> None:
    dtype = ddp_process.TRAINING[case].dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 2 * torch.finfo(dtype).eps)
    for found in results(case):
        if "skipped" in found:
            pytest.skip(found["skipped"])
        assert "error" not in found, found["error"]
        assert found["error_of_gradients"] <= tolerance
        # The bias of a head whose weight is shared with a linear layer stays sparse.
        assert found["sparse"][0] == (case not in DENSE)


@pytest.mark.parametrize("case", REFUSED)
def test_what_ddp_cannot_do_says_so(results: Results, case: str) -> None:
    for found in results(case):
        with pytest.raises(RuntimeError, match=REFUSED[case]):
            raise RuntimeError(found["error"])


def test_the_announcement_shows_nowhere_else(results: Results) -> None:
    names = ["body.weight", "body.bias", "head.weight", "head.bias"]
    for found in results("unseen"):
        assert found["names"] == names
        assert found["with duplicates"] == names
        assert found["state"] == names
        assert found["children"] == ["LogUniformSampler"]
        kinds = ["Model", "Linear", "SampledSoftmaxLoss", "LogUniformSampler"]
        assert found["modules by name"] == kinds
        assert sorted(found["applied to"]) == sorted(kinds)
        assert found["copies"] == [names, names]
        assert not found["repr"]
        assert found["follows a new weight"]
        assert found["like an embedding"] == (60, 8, None)
        assert found["dense"] == kinds[2:]


def test_without_a_process_group_nothing_is_announced() -> None:
    head = ssc.SampledSoftmaxLoss(4, 10, 3, sparse_grad=True)
    assert not any(isinstance(module, nn.Embedding) for module in head.modules())


def test_a_head_without_ddp_in_a_process_group(results: Results) -> None:
    for found in results("without DDP"):
        assert found == {"coalesced": True}


def test_a_table_of_an_embedding_and_the_function(results: Results) -> None:
    for found in results("own table"):
        assert found == {"sparse": True}


def test_a_frozen_weight(results: Results) -> None:
    for found in results("frozen weight"):
        assert found == {"weight": True, "bias": True}


def test_parameters_that_ddp_ignores(results: Results) -> None:
    for found in results("left out"):
        assert found == {"own": True}


def test_ranks_with_unequal_numbers_of_batches(results: Results) -> None:
    for found in results("join"):
        assert found == {"sparse": True}


def test_losses_outside_of_the_forward_pass(results: Results) -> None:
    """PyTorch's own errors; docs/sparse_gradients.md says what to do."""
    for found in results("log_prob outside"):
        assert "Expected variable to have sparse gradient" in found["error"]
    for found in results("function outside"):
        assert "Cannot access storage of SparseTensorImpl" in found["error"]


def test_ranks_draw_alike_from_one_seed(results: Results) -> None:
    """docs/randomness.md."""
    for found in results("negatives"):
        assert found == {"one seed": True, "seed + rank": False, "generator": False}


def test_a_head_that_no_row_reaches(results: Results) -> None:
    """docs/sparse_gradients.md: torch reports a parameter without a sparse gradient."""
    for found in results("unused head"):
        assert "Expected sparse gradient to be defined" in found["error"]


# --- fully_shard and DTensor ----------------------------------------------------------------------


@pytest.mark.parametrize("case", ["fully_shard", "fully_shard, head alone"])
def test_dense_gradients_under_fully_shard(results: Results, case: str) -> None:
    for found in results(case):
        assert found == {"right": True, "type": "DTensor"}


@pytest.mark.parametrize("case", ["fully_shard, sparse", "fully_shard, sparse, head alone"])
def test_fully_shard_refuses_sparse_gradients(results: Results, case: str) -> None:
    for found in results(case):
        assert "sparse_grad=True, but fully_shard" in found["error"]
        assert "use sparse_grad=False, or leave the head out" in found["error"]


def test_a_head_left_out_of_fully_shard(results: Results) -> None:
    for found in results("fully_shard, ignored"):
        assert found == {"right": True, "type": "Tensor"}


@pytest.mark.parametrize("case", ["topk", "topk, registered"])
def test_other_methods_under_fully_shard(results: Results, case: str) -> None:
    for found in results(case):
        assert all(found.values()), found


@pytest.mark.parametrize("argument", ["input", "target", "samples.ids"])
def test_dtensors_are_refused_by_name(results: Results, argument: str) -> None:
    for found in results(f"DTensor {argument}"):
        assert f"{argument} must be a plain tensor, got a DTensor (Shard(dim=0),)" in found["error"]
        assert "are for ssc.distributed.ShardedSampledSoftmaxLoss" in found["error"]


def test_a_dtensor_in_full(results: Results) -> None:
    for found in results("full_tensor"):
        assert found == {"grad": "DTensor"}


def test_modules_made_of_dtensors(results: Results) -> None:
    for found in results("drawn for a DTensor"):
        assert "UniformSampler.sample: target must be a plain tensor" in found["error"]
    for found in results("distribute_module"):
        assert "sparse_grad=True, but weight is a DTensor, which has dense" in found["error"]
        assert "use ssc.distributed.ShardedSampledSoftmaxLoss" in found["error"]
    for found in results("ColwiseParallel"):  # torch's own, before anything of ours is called
        assert "ColwiseParallel currently only support nn.Linear and nn.Embedding" in found["error"]


def test_the_weights_of_ranks_stay_the_same(results: Results) -> None:
    """With ssc.optim and stochastic rounding, whose seed ranks share."""
    first, second = (found["weight"] for found in results("optimizer, decay"))
    assert torch.equal(first, second)
    assert not any(found["warned"] for found in results("optimizer, decay"))


def test_rows_that_replay_warn_of_ranks_that_differ(results: Results) -> None:
    assert all(found["warned"] for found in results("optimizer, replay"))

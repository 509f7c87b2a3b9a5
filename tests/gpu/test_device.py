"""Facts that only a GPU can show; all else runs there by the fixture `backend` (conftest.py)."""

from __future__ import annotations

import torch

import sampled_softmax_cuda as ssc
from helpers.problem import make_problem
from helpers.truth import check_grads


def test_several_chunks_of_rows(gpu: str) -> None:
    """More logits than the workspace holds at a time."""
    check_grads(make_problem(2000, 8, 2000, 9000), sparse_grad=True)


def test_a_graph_draws_fresh_negatives_at_each_replay(gpu: str) -> None:
    p = make_problem(64, 32, 5000, 100)
    sampler = ssc.LogUniformSampler(5000)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        samples = sampler.sample(p.target, 100, replacement=False)
        loss = ssc.sampled_softmax_loss(p.input, p.weight, p.target, samples, sparse_grad=True)
        return samples.ids, torch.autograd.grad(loss, p.input)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids, grad = step()
    seen = set()
    for _ in range(5):
        graph.replay()
        seen.add(tuple(ids.tolist()))
        assert torch.isfinite(grad).all()
    assert len(seen) == 5

"""A head whose class matrix is an embedding's: one parameter for both."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import sampled_softmax_cuda as ssc

B, D, C, S = 16, 8, 60, 20


class Model(nn.Module):
    def __init__(self, sparse_embedding: bool, sparse_head: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(C, D, sparse=sparse_embedding)
        self.head = ssc.SampledSoftmaxLoss(
            D, C, S, bias=False, weight=self.embedding.weight, sparse_grad=sparse_head
        )

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.head(self.embedding(ids).tanh(), target)
        return loss


def grad_of(model: Model, ids: Tensor, target: Tensor) -> Tensor:
    torch.manual_seed(4)
    model(ids, target).backward()
    grad = model.embedding.weight.grad
    assert grad is not None
    return grad


def test_it_is_one_parameter(either: str) -> None:
    model = Model(False, False)
    assert model.head.weight is model.embedding.weight
    assert len(list(model.parameters())) == 1
    assert {"embedding.weight", "head.weight"} <= set(model.state_dict())
    before = model.embedding.weight.detach().clone()
    model.head.reset_parameters()
    assert torch.equal(model.embedding.weight, before)
    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.embedding.weight
    other = Model(False, False)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.head.weight, model.embedding.weight)


@pytest.mark.parametrize("sparse_embedding", [False, True])
@pytest.mark.parametrize("sparse_head", [False, True])
def test_gradients_add_up(either: str, sparse_embedding: bool, sparse_head: bool) -> None:
    ids, target = torch.randint(C, (B,)), torch.randint(C, (B,))
    model = Model(sparse_embedding, sparse_head)
    dense = Model(False, False)
    dense.load_state_dict(model.state_dict())
    got, want = grad_of(model, ids, target), grad_of(dense, ids, target)
    assert got.is_sparse == (sparse_embedding and sparse_head)
    torch.testing.assert_close(got.to_dense(), want, rtol=1e-5, atol=1e-6)


def test_sparse_training(either: str) -> None:
    model = Model(True, True)
    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.05)
    ids = torch.arange(B)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(ids, ids)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_what_is_no_class_matrix() -> None:
    parameter = nn.Parameter(torch.zeros(C, D))
    with pytest.raises(
        TypeError, match=r"weight must be an nn.Parameter, such as embedding.weight"
    ):
        ssc.SampledSoftmaxLoss(D, C, S, weight=torch.zeros(C, D))
    with pytest.raises(
        ValueError, match=rf"weight must be \[num_classes={C + 1}, in_features={D}\]"
    ):
        ssc.SampledSoftmaxLoss(D, C + 1, S, weight=parameter)
    with pytest.raises(ValueError, match=r"dtype must be that of weight, torch.float32, got"):
        ssc.SampledSoftmaxLoss(D, C, S, weight=parameter, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"device must be that of weight, cpu, or None, got meta"):
        ssc.SampledSoftmaxLoss(D, C, S, weight=parameter, device="meta")

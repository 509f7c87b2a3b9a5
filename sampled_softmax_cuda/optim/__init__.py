"""Optimizers for row-sparse gradients: a step costs as much as the rows that it touches.

`torch.optim.Optimizer`s with the names and options of torch's, for gradients that are row-sparse
(`sparse_grad=True`, `nn.Embedding(sparse=True)`, tied weights) or dense, on the CPU and on CUDA;
and clipping of both kinds together. docs/optim.md says which to take.
"""

from .adagrad import Adagrad, RowWiseAdagrad
from .adam import Adam, AdamW, RowWiseAdam
from .backward import in_backward
from .clip import clip_grad_norm_, clip_grad_value_
from .sgd import SGD

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "RowWiseAdagrad",
    "RowWiseAdam",
    "clip_grad_norm_",
    "clip_grad_value_",
    "in_backward",
]

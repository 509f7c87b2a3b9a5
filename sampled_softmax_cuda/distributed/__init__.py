"""Sampled softmax over classes that lie on several ranks, on torch.distributed.

    head = ssc.distributed.ShardedSampledSoftmaxLoss(512, 100_000_000, 65_536, sparse_grad=True)
    loss = head(backbone(x), target)  # every rank: its own rows, and a part of the classes

docs/distributed.md says when it is needed, and how it goes together with DDP and fully_shard.
"""

from .clip import clip_grad_norm_
from .functional import sharded_sampled_softmax_loss
from .modules import ShardedSampledSoftmaxLoss
from .optimizers import (
    full_optimizer_state_dict,
    load_full_optimizer_state_dict,
    register_optimizer,
)
from .shard import ClassShard
from .streaming import ShardedStreamingSampler
from .style import ClassParallel
from .weighted import ShardedWeightedSampler

__all__ = [
    "ClassParallel",
    "ClassShard",
    "ShardedSampledSoftmaxLoss",
    "ShardedStreamingSampler",
    "ShardedWeightedSampler",
    "clip_grad_norm_",
    "full_optimizer_state_dict",
    "load_full_optimizer_state_dict",
    "register_optimizer",
    "sharded_sampled_softmax_loss",
]

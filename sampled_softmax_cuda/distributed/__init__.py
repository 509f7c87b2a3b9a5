"""Sampled softmax over classes that lie on several ranks, on torch.distributed.

    head = ssc.distributed.ShardedSampledSoftmaxLoss(512, 100_000_000, 65_536, sparse_grad=True)
    loss = head(backbone(x), target)  # every rank: its own rows, and a part of the classes

docs/distributed.md says when it is needed, and how it goes together with DDP and fully_shard.
"""

from .functional import sharded_sampled_softmax_loss
from .modules import ShardedSampledSoftmaxLoss
from .shard import ClassShard
from .streaming import ShardedStreamingSampler
from .weighted import ShardedWeightedSampler

__all__ = [
    "ClassShard",
    "ShardedSampledSoftmaxLoss",
    "ShardedStreamingSampler",
    "ShardedWeightedSampler",
    "sharded_sampled_softmax_loss",
]

"""TensorFlow's sampled losses and candidate samplers under their own names, for people who move.

Names, order of arguments, defaults and results are those of `tf.nn.sampled_softmax_loss`,
`tf.nn.nce_loss`, `tf.nn.compute_accidental_hits` and `tf.random.*_candidate_sampler` of TensorFlow
2; what differs is said at each function and in docs/coming_from_tensorflow.md. `name` is accepted
everywhere.

Seeds: without `seed` a draw takes its numbers from torch's default generator. With one it is the
next draw of a stream of its own, as with an operator's seed in TensorFlow: the first call after the
start of a program, or after `set_seed`, always gives the same classes, the second call the next
ones. The numbers themselves are not TensorFlow's.
"""

from ._candidates import (
    SampledValues,
    all_candidate_sampler,
    log_uniform_candidate_sampler,
    uniform_candidate_sampler,
)
from ._fixed import fixed_unigram_candidate_sampler, fixed_unigram_sampler
from ._learned import LearnedUnigram, learned_unigram_candidate_sampler
from ._loss import compute_accidental_hits, nce_loss, sampled_softmax_loss
from ._seeds import set_seed

__all__ = [
    "LearnedUnigram",
    "SampledValues",
    "all_candidate_sampler",
    "compute_accidental_hits",
    "fixed_unigram_candidate_sampler",
    "fixed_unigram_sampler",
    "learned_unigram_candidate_sampler",
    "log_uniform_candidate_sampler",
    "nce_loss",
    "sampled_softmax_loss",
    "set_seed",
    "uniform_candidate_sampler",
]

"""A proposal that learns how frequent classes are from the targets that it sees."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, distributed

from .._arguments import as_bool, as_float, as_int
from .._checks import check_padding_idx
from ..proposals import Proposal
from ..samples import KeyedSamples, Samples
from ._stream import CountedStream, IntervalStream
from .base import ANY_CLASSES, DrawOptions, check_num_classes
from .keyed import KeyedSampler, Plan
from .pooled import Learner, check_ignore_index, in_backward_pass, is_class, learn

_MODES = ("counts", "interval")


class StreamingSampler(KeyedSampler, Learner):
    """Learns q from the targets: by counting them, or by the gaps between them.

    mode="counts" (TensorFlow's learned unigram): every class starts with a count of 1, each target
    adds 1, and q is the share of the total. It draws from an alias table of the counts, built anew
    at a draw if the targets since then exceed `staleness` times their total: what it draws from is
    at most staleness / (1 + staleness) in total variation behind the counts, and the building costs
    O(1) per target. The correction of a sample is always by the q that it was drawn from, while
    `log_prob` is by the counts of now. 24 bytes per class, 32 after a `sync`.

    mode="interval" (Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations", 2019): q = 1 / the mean number of targets from one hit to the next, in hashed
    arrays, for classes that nobody can enumerate, and for frequencies that change (it remembers
    about 1 / rate hits). It can't draw: it is the `log_q` of an `InBatchSampler`. The estimates sum
    to about 1 only. 24 bytes per bucket and hash function.

    Args:
        num_classes: C; may be None (any id) with mode="interval".
        mode: "counts" (default) or "interval".
        update_on_sample: whether `sample` in training mode, by this sampler or one that it is part
            of, ends with `update(target)`. Default False: call `update` yourself.
        ignore_index: a target that doesn't count, as in the loss; nor does an id that is no class.
        padding_idx: a class that is no class, as in the loss: it does not count as a target and is
            never drawn. None (default): every class is one.
        staleness: see above; default 0.05.
        num_buckets, num_hashes: size and number of the hashed arrays; more buckets than classes
            make collisions rare. Defaults 2^20 and 2.
        rate: the step of the moving estimate. Default 0.01.
        persistent: whether the state_dict has what was learnt. Default True.

    Under torch.compile `update` counts, but the table is not built anew: call `rebuild()` between
    steps. With several processes, each learns for itself, in DistributedDataParallel too: call
    `sync()` in all of them now and then.

    Raises:
        ValueError, TypeError: arguments that are not as above.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> sampler = ssc.StreamingSampler(4)
        >>> sampler.update(torch.tensor([2, 2, 2, 0]))
        >>> sampler.log_prob(torch.arange(4)).exp()
        tensor([0.2500, 0.1250, 0.5000, 0.1250])
        >>> sampler.sample(torch.tensor([2]), 8).target_log_expected_count.exp()
        tensor([4.])
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        mode: Literal["counts", "interval"] = "counts",
        update_on_sample: bool = False,
        ignore_index: int = -100,
        padding_idx: int | None = None,
        staleness: float = 0.05,
        num_buckets: int = 2**20,
        num_hashes: int = 2,
        rate: float = 0.01,
        persistent: bool = True,
    ) -> None:
        super().__init__()
        name = "StreamingSampler"
        if mode not in _MODES:
            raise ValueError(f"{name}: mode must be 'counts' or 'interval', got {mode!r}")
        staleness = as_float(name, "staleness", staleness)
        if not 0 <= staleness < math.inf:
            raise ValueError(f"{name}: staleness must be a number >= 0, got {staleness}")
        rate = as_float(name, "rate", rate)
        if not 0 < rate <= 1:
            raise ValueError(f"{name}: rate must be in (0, 1], got {rate}")
        num_buckets = as_int(name, "num_buckets", num_buckets)
        num_hashes = as_int(name, "num_hashes", num_hashes)
        for label, value in (("num_buckets", num_buckets), ("num_hashes", num_hashes)):
            if value < 1:
                raise ValueError(f"{name}: {label} must be an int >= 1, got {value}")
        if mode == "counts" or num_classes is not None:
            num_classes = check_num_classes(name, num_classes, ANY_CLASSES)
        self.num_classes = ANY_CLASSES if num_classes is None else num_classes
        self.mode = mode
        self.update_on_sample = as_bool(name, "update_on_sample", update_on_sample)
        self.ignore_index = check_ignore_index(name, ignore_index)
        if padding_idx is not None:
            self.padding_idx = check_padding_idx(name, padding_idx, self.num_classes)
        self.stream: CountedStream | IntervalStream
        if mode == "counts":
            self.stream = CountedStream(self.num_classes, staleness, self.padding_idx, persistent)
        else:
            self.stream = IntervalStream(num_buckets, num_hashes, rate, persistent)

    @property
    def num_drawable(self) -> int:
        """The number of classes with q > 0."""
        if isinstance(self.stream, CountedStream):
            return self.stream.table.num_drawable
        return self.num_classes

    @property
    def draws(self) -> bool:
        return self.mode == "counts"

    @property
    def counts(self) -> Tensor:
        """int64 [C], 1 + the number of times that each class was a target (mode="counts")."""
        return self._counted("counts").counts

    def update(self, target: Tensor) -> None:
        """Learn from a batch of targets.

        Args:
            target: int64 of any shape; ignore_index and ids that are no class are left out.

        Raises:
            TypeError, ValueError: a target that is not int64, or on another device.
        """
        self._check_ids("update", "target", target)
        ids = target.detach().reshape(-1)
        valid = is_class(ids, self.num_classes, self.padding_idx, self.ignore_index)
        if ids.numel() > 0:
            self.stream.update(ids, valid)

    def rebuild(self) -> None:
        """Draw from the counts of now, however few are new (mode="counts").

        Raises:
            ValueError: mode="interval".
        """
        self._counted("rebuild").rebuild()

    def sync(self, group: distributed.ProcessGroup | None = None) -> None:
        """Merge what the processes of a torch.distributed group have learnt; all must call it.

        Counts add up, exactly, and every process then draws from the same table; gaps are averaged
        by the number of hits. Without an initialised process group nothing happens.

        Raises:
            RuntimeError: counts that did not start alike: samplers built in another way, or a
                checkpoint loaded in some processes only.
        """
        if distributed.is_available() and distributed.is_initialized():
            self.stream.sync(group)

    def sample(self, target: Tensor, num_samples: int, **options: Any) -> Samples:
        """As `Sampler.sample`, with its options; then, if asked for, `update(target)`.

        Raises:
            ValueError: mode="interval", which can't draw. Otherwise as `Sampler.sample`.
        """
        self._counted("sample")
        self._proposal()  # a new table, if it is time for one, before anything depends on it
        samples = super().sample(target, num_samples, **options)
        learn(self, target)
        return samples

    def sample_keyed(self, target: Tensor, num_samples: int, **options: Any) -> KeyedSamples:
        """As `Sampler.sample_keyed`; learns the target afterwards if `update_on_sample`."""
        self._counted("sample_keyed")
        self._proposal()
        keyed = super().sample_keyed(target, num_samples, **options)
        learn(self, target)
        return keyed

    def log_prob(self, ids: Tensor) -> Tensor:
        """log q of each id by what is known now, float32 of their shape; see the class.

        Raises:
            IndexError: an id outside [0, num_classes). TypeError: ids that are not int64.
        """
        self._check_ids("log_prob", "ids", ids)
        self._check_range("log_prob", ids)
        return self.stream.log_prob(ids)

    def extra_repr(self) -> str:
        classes = "any" if self.num_classes == ANY_CLASSES else str(self.num_classes)
        return f"num_classes={classes}, mode={self.mode!r}"

    def _counted(self, method: str) -> CountedStream:
        if isinstance(self.stream, CountedStream):
            return self.stream
        raise ValueError(
            f"{self._name}.{method} is not possible with mode='interval', which has no list of"
            " classes to draw from: give the sampler to InBatchSampler as log_q, or use"
            " mode='counts'"
        )

    def _proposal(self) -> Proposal:
        stream = self._counted("a draw")
        # A pass that is repeated there draws what the first one drew.
        if not in_backward_pass() and stream.due():
            self.rebuild()
        return stream.table._proposal()

    def _plan(self, options: DrawOptions) -> Plan:
        return self._counted("a draw").table._plan(options)

    def _solve_tries(self, num_samples: int) -> float:
        return self._counted("a draw").table._solve_tries(num_samples)

    def _device(self) -> torch.device:
        return self.stream._state_device()

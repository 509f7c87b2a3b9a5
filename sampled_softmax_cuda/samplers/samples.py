"""What samplers give and the loss takes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Samples(NamedTuple):
    """Sampled classes and the logarithms of their expected counts.

    Ids may come from anywhere (a queue, a miner): `Samples(ids, None, None)` corrects nothing.
    Shared by the whole batch they are [S]; [*, S] gives each row its own, * being the batch's
    shape.
    """

    ids: Tensor
    """[S] or [*, S] int64 class ids."""
    log_expected_count: Tensor | None
    """float32 of the shape of ids, log n of each; None means n = 1. +inf masks a sample: it
    contributes nothing. -inf, n = 0, corrects nothing, as n = 1."""
    target_log_expected_count: Tensor | None
    """float32 of the target's shape, log n of each target; None means n = 1. A class that is never
    drawn has 0 from a sampler, and -inf means the same."""

    @property
    def num_samples(self) -> int:
        """S."""
        return self.ids.shape[-1]

    @property
    def shared(self) -> bool:
        """Whether all rows share the samples."""
        return self.ids.dim() == 1

    def materialize(self) -> Samples:
        """These samples, whose ids are there already; see `KeyedSamples`."""
        return self

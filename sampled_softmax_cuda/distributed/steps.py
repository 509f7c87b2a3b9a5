"""Steps of training: which negatives a step has, and a step that begins before its input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..options import Inclusion
from ..samplers import Sampler
from ..samplers.base import DrawOptions
from ..samplers.pooled import learn
from .call import Agreed, Asked, Batch, Layout, check_place
from .drawn import Drawn
from .draws import draw_step
from .functional import agreed_call, begin, solve_call
from .keys import check_generator, fingerprint
from .prefetch import Prefetched, check_prefetch, stand_in
from .sharded_sampler import ShardedSampler

_NAME = "ShardedSampledSoftmaxLoss"

# With static_batch=True, every so many steps the ranks look whether they still agree.
_STATIC_STEPS = 100


class Steps(nn.Module):
    """The steps of a head on several ranks."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    class_weight: Tensor | None
    sampler: Sampler
    layout: Layout
    num_samples: int
    replacement: bool
    inclusion: Inclusion
    draw: str
    padding_idx: int | None
    static_batch: bool
    _seed: int
    _step: int
    _known: Agreed | None
    _ahead: Prefetched | None

    def _asked(self) -> Asked:
        raise NotImplementedError

    def sampled_loss(
        self,
        asked: Asked,
        input: Tensor,
        target: Tensor,
        generator: torch.Generator | None,
        tensors: Mapping[str, Any],
    ) -> Any:
        """The loss of a step, by negatives that are drawn now or were prefetched.

        Args:
            tensors: others of `agreed_call`, by name.
        """
        ahead, self._ahead = self._ahead, None

        def check() -> None:
            check_generator(_NAME, generator, self.weight.device)
            if ahead is not None:
                ahead.check(_NAME, target, self._tables(), self._revision(), generator)

        def draw(batch: Batch, agreed: Agreed) -> Drawn:
            try:
                return self._draw(batch, agreed, generator) if ahead is None else ahead.drawn
            finally:  # not in prefetch: a step that is forgotten, or saved, has not been taken
                self._step += 1

        quiet = self._quiet() if ahead is None else ahead.quiet
        try:
            call = agreed_call(
                asked,
                input,
                self.weight,
                target,
                draw,
                same={**self._same(generator), "prefetched": ahead is not None},
                check=check,
                known=self._known if quiet else None,
                **tensors,
            )
        except Exception:
            if ahead is not None:
                ahead.forget()
            raise
        result = solve_call(call, not quiet, None if ahead is None else ahead.fetching)
        if call.drawn.learns is not None:
            learn(self.sampler, call.drawn.learns)
        return result

    @torch.no_grad()
    def prefetch(
        self,
        target: Tensor | None,
        *,
        num_true: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Begin the next training step before its input is there; collective.

        Negatives are drawn, and with algorithm="fetch" their rows begin to travel, while the
        backbone computes. The loss is the same as without.

        Args:
            target: that of the next forward pass. None: forget what was prefetched.
            num_true: T where target is [*, T]; None (default): it is [*].
            generator: as in `forward`, to which it is not given then.

        Raises:
            ValueError: in eval mode, or twice before a forward pass; there, for another target, or
                parameters that have changed in between; on all ranks, if one has it. Otherwise as
                `forward`.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> head = ssc.distributed.ShardedSampledSoftmaxLoss(16, 1000, 64)
            >>> body, x, target = torch.nn.Linear(4, 16), torch.randn(8, 4), torch.arange(8)
            >>> head.prefetch(target)
            >>> head(body(x), target).backward()
        """
        if target is None:
            if self._ahead is not None:
                self._ahead.forget()
            self._ahead = None
            return
        check_place(_NAME, self.weight)

        def check() -> None:
            check_generator(_NAME, generator, self.weight.device)
            check_prefetch(_NAME, target, num_true, self.training, self._ahead)

        def draw(batch: Batch, agreed: Agreed) -> Drawn:
            return self._draw(batch, agreed, generator)

        quiet = self._quiet()
        call = agreed_call(
            self._asked(),
            stand_in(target, num_true, self.weight),
            self.weight,
            target,
            draw,
            bias=self.bias,
            class_weight=self.class_weight,
            same=self._same(generator),
            check=check,
            known=self._known if quiet else None,
            phase="prefetch",
        )
        fetching = begin(call)
        self._ahead = Prefetched(
            target.clone(), call.drawn, fetching, self._tables(), self._revision(), quiet
        )

    def _tables(self) -> tuple[Tensor, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def _quiet(self) -> bool:
        """Whether the next step goes without a header."""
        known = self._known is not None
        return known and self.static_batch and self._step % _STATIC_STEPS != 0

    def _same(self, generator: torch.Generator | None) -> dict[str, Any]:
        """Numbers and names that must be the same on all ranks in a step, besides `Asked.same`."""
        return {
            "num_samples": self.num_samples,
            "replacement": self.replacement,
            "inclusion": self.inclusion,
            "draw": self.draw,
            "state of the generator": None if generator is None else fingerprint(generator),
            "seed": self._seed,
            "step": self._step,
            "number of updates of the sampler": self._revision(),
        }

    def _revision(self) -> int:
        return self.sampler.revision if isinstance(self.sampler, ShardedSampler) else 0

    def _draw(self, batch: Batch, agreed: Agreed, generator: torch.Generator | None) -> Drawn:
        """The negatives of this step."""
        if self.static_batch:
            self._known = agreed
        how = DrawOptions(self.num_samples, self.replacement, self.inclusion)
        return draw_step(
            self.sampler,
            self.draw,
            how,
            self.layout,
            batch,
            agreed,
            self.padding_idx,
            (self._seed, self._step),
            generator,
        )

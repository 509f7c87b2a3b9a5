"""The loss as a module whose class matrix lies on several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh

from .. import _checks
from .._arguments import as_bool, as_int
from ..exact import TopK
from ..modules import SampledSoftmaxLoss
from ..objectives import Objective, ObjectiveName
from ..options import Correction, Inclusion, Reduction, checked_options
from ..samplers import Sampler
from ..samplers.choice import as_sampler
from . import exact
from .agreement import Agreement
from .call import Algorithm, Asked, InputLayout, Layout, check_place
from .draws import DrawName, drawn_from
from .functional import check_layout
from .keys import SEED_LIMIT, common_seed, keyed_uniform_
from .ranks import ALONE
from .shard import ClassOrder, ClassShard, as_ranks, misplaced
from .state import SavesShards
from .steps import Steps

__all__ = ["ShardedSampledSoftmaxLoss"]

_NAME = "ShardedSampledSoftmaxLoss"


class ShardedSampledSoftmaxLoss(SavesShards, Steps, SampledSoftmaxLoss):
    """`SampledSoftmaxLoss` over class counts that one process can't hold; collective.

    Each rank owns ceil(C / R) rows of the class matrix, the last ones fewer, and passes its own
    rows of the batch. The head behaves as if it were replicated under DistributedDataParallel: the
    loss is such that its average over ranks, and that of the backbone's gradients, are those of one
    process with the whole batch, and the gradients of `weight` and `bias` are those averages
    already. No factor is needed anywhere, whatever the numbers of rows; docs/distributed.md has
    trainers that do otherwise.

    Keep the head outside of DistributedDataParallel, and pass its parameters to `fully_shard` as
    `ignored_params`. Call it equally often on all ranks; a rank without rows passes none. In front
    of each step stands a small exchange, with which an error of one rank is an error of all.

    Args:
        in_features, num_classes, num_samples: D, C and S, as in `SampledSoftmaxLoss`; S is drawn
            once for all ranks.
        sampler: as there, the same on all ranks. Its draws come from a key that the ranks share,
            and from the number of the step; samplers that use or learn the targets see those of all
            ranks.
        mesh: the ranks that share the classes: a DeviceMesh of one dimension, a ProcessGroup, or
            None (default): all.
        replica_mesh: the ranks that own the same classes in other groups, likewise, of a mesh of
            replicas x classes; None (default): there are no others.
        algorithm: "fetch" sends rows of the matrix, "gather" rows of input; "auto" (default) what
            sends less. The numbers are the same.
        draw: "global": all ranks draw the same, each from the whole sampler. "composed": each rank
            draws from a table of its own rows, as many as a key that all share deals to it; a
            `sampler` of all classes is sharded (`Sampler.shard`). "stratified": the same, but each
            rank draws an equal share of num_samples. "auto" (default): "global" for a sampler of
            all classes; for a sharded one "composed", or "stratified" without replacement.
        class_order: "spread" (default) or "contiguous", as in `ClassShard`.
        input_layout: "sharded" (default): each rank has rows of its own. "replicated": the ranks of
            a class group have the same, as after a tensor-parallel backbone.
        gradient_divide_factor: by what the trainer divides the sum of gradients over ranks; None
            (default): by their number.
        static_batch: every rank always passes as many rows: the exchange in front of a step, for
            which a GPU waits, is left out but in each hundredth step, and a target out of range
            gives NaN on a GPU. Default False.
        seed: of the initial values and the negatives, the same on all ranks; None (default): taken
            from torch's default generator on the first rank.
        weight: a parameter [C_r, D], the rows of `shard.classes`, or None (default): its own.
        class_weight: [C], as there; every rank keeps its own part.
        others: as in `SampledSoftmaxLoss`; per_row=True is not possible.

    Initial values depend on the seed and the class alone, not on the number of ranks. On the meta
    device there are none until `to_empty(device=...)` and `reset_parameters()`.

    Raises:
        ValueError, TypeError: arguments that do not fit, or differ between ranks; on all ranks.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> head = ssc.distributed.ShardedSampledSoftmaxLoss(16, 1000, 64)  # torchrun: its ranks
        >>> h, target = torch.randn(8, 16), torch.randint(1000, (8,))
        >>> head(h, target).backward()
        >>> head.eval().topk(h, 5).indices.shape
        torch.Size([8, 5])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        num_samples: int,
        sampler: Literal["uniform", "log_uniform"] | Sampler | Tensor = "log_uniform",
        *,
        mesh: DeviceMesh | distributed.ProcessGroup | None = None,
        replica_mesh: DeviceMesh | distributed.ProcessGroup | None = None,
        algorithm: Algorithm = "auto",
        draw: DrawName = "auto",
        class_order: ClassOrder = "spread",
        input_layout: InputLayout = "sharded",
        gradient_divide_factor: float | None = None,
        static_batch: bool = False,
        seed: int | None = None,
        bias: bool = True,
        weight: nn.Parameter | None = None,
        replacement: bool = True,
        inclusion: Inclusion = "expected",
        per_row: bool = False,
        objective: ObjectiveName | Objective = "softmax",
        temperature: float = 1.0,
        correction: Correction = "both",
        remove_accidental_hits: bool = True,
        softcap: float | None = None,
        cosine: bool = False,
        z_loss: float = 0.0,
        ignore_index: int = -100,
        padding_idx: int | None = None,
        class_weight: Tensor | None = None,
        reduction: Reduction = "mean",
        sparse_grad: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shard = ClassShard(num_classes, mesh, order=class_order)
        replicas = ALONE if replica_mesh is None else as_ranks(_NAME, "replica_mesh", replica_mesh)
        agreement = Agreement(shard.ranks, replicas)
        # nn.Module takes no attributes before its __init__, which asks for the number of rows.
        self.__dict__.update(shard=shard, _seed=None, _step=0, _known=None, _ahead=None)
        error: Exception | None = None
        same: dict[str, Any] = {
            "num_classes": num_classes,
            "num_samples": num_samples,
            "seed": seed,
        }
        try:
            divide_factor = check_layout(_NAME, algorithm, input_layout, gradient_divide_factor)
            if as_bool(_NAME, "per_row", per_row):
                raise ValueError(
                    f"{_NAME}: per_row=True is not possible: every row of every rank would need"
                    " rows of the matrix of its own; use per_row=False"
                )
            if seed is not None:
                seed = as_int(_NAME, "seed", seed, least=0)
                if seed >= SEED_LIMIT:
                    raise ValueError(f"{_NAME}: seed must be below 2^63 - 1, got {seed}")
            self.algorithm, self.input_layout = algorithm, input_layout
            if padding_idx is not None:
                padding_idx = _checks.check_padding_idx(_NAME, padding_idx, num_classes)
            sampler = as_sampler(_NAME, sampler, num_classes, padding_idx)
            replacement = as_bool(_NAME, "replacement", replacement)
            how, sampler = drawn_from(_NAME, draw, sampler, shard, replacement)
            self.static_batch = as_bool(_NAME, "static_batch", static_batch)
            self.layout = Layout(shard, replicas, agreement, input_layout, divide_factor)
            super().__init__(
                in_features,
                num_classes,
                num_samples,
                sampler,
                bias=bias,
                weight=weight,
                replacement=replacement,
                inclusion=inclusion,
                objective=objective,
                temperature=temperature,
                correction=correction,
                remove_accidental_hits=remove_accidental_hits,
                softcap=softcap,
                cosine=cosine,
                z_loss=z_loss,
                ignore_index=ignore_index,
                padding_idx=padding_idx,
                reduction=reduction,
                sparse_grad=sparse_grad,
                device=device,
                dtype=dtype,
            )
            self.class_weight = self._own_class_weight(class_weight)
            self.draw = how
            same.update(draw=how, sampler=repr(self.sampler))
        except Exception as problem:
            error = problem
        where = shard.ranks.device
        wrong = misplaced(_NAME, shard.ranks, replicas)
        agreement.open(f"{_NAME}(...)", where, error or wrong, options=same)
        self._seed = common_seed(seed, shard.ranks, replicas, where)
        self.reset_parameters()

    def _num_rows(self) -> int:
        return self.shard.num_rows

    def _own_class_weight(self, class_weight: Tensor | None) -> Tensor | None:
        if class_weight is None:
            return None
        _checks.check_class_weight(
            _NAME, class_weight, self.weight.new_empty(1).expand(self.num_classes)
        )
        return class_weight[self.shard.classes.to(class_weight.device)]

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-1/sqrt(in_features), 1/sqrt(in_features)), by the seed and
        the class; the padding's are zero. A weight that was given stays as it is."""
        if self._seed is None or self.weight.is_meta:
            return
        shard, bound = self.shard, self.in_features**-0.5
        classes = shard.classes
        own = [self.bias] if self._tied else [self.weight, self.bias]
        for parameter in own:
            if parameter is None:
                continue
            keyed_uniform_(parameter.detach(), classes, self._seed, bound)
            if self.padding_idx is not None:
                with torch.no_grad():
                    parameter[(classes == self.padding_idx).to(parameter.device)] = 0.0

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As nn.Module's: no wrapper reduces the gradients of a shard."""
        yield from nn.Module.named_modules(self, memo, prefix, remove_duplicate)

    @torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
        reason="exchanges between ranks, and the decisions they lead to, stay outside of graphs"
    )
    def forward(
        self,
        input: Tensor,
        target: Tensor,
        exclude: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        return_details: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The sampled loss in training mode, the exact one in eval mode; collective.

        Args:
            input: [*, D], this rank's rows, or none.
            target: [*] int64 classes of all ranks. In training also [*, T].
            exclude, sample_weight, return_details: as `SampledSoftmaxLoss.forward`.
            generator: for the draw, in the same state on all ranks; None (default): the head's own.

        Returns:
            A scalar, or [*] with reduction="none".

        Raises:
            RuntimeError: inside a module under DistributedDataParallel, or in a forward pass that a
                checkpoint of activations repeats. Otherwise as
                `sharded_sampled_softmax_loss`.
        """
        check_place(_NAME, self.weight)
        asked = self._asked(return_details)
        tensors: dict[str, Any] = {
            "bias": self.bias,
            "exclude": exclude,
            "class_weight": self.class_weight,
            "sample_weight": sample_weight,
        }
        if not self.training:
            return exact.exact_loss(asked, input, self.weight, target, **tensors)
        return self.sampled_loss(asked, input, target, generator, tensors)

    def _asked(self, return_details: bool = False) -> Asked:
        options = checked_options(
            _NAME,
            self.objective,
            self.temperature,
            self.correction,
            self.remove_accidental_hits,
            self.ignore_index,
            self.softcap,
            self.cosine,
            self.z_loss,
        )
        return Asked(
            _NAME,
            self.layout,
            options,
            self.algorithm,
            self.padding_idx,
            self.reduction,
            self.sparse_grad,
            return_details,
        )

    # --- exact ------------------------------------------------------------------------------------

    def logits(self, input: Tensor) -> Tensor:
        """ValueError: no rank should hold [*, C]; see `log_prob` and `topk`."""
        raise ValueError(
            f"{_NAME}.logits is not possible: they would be [*, C={self.num_classes}] on every"
            " rank; use topk, log_prob, or the loss in eval mode"
        )

    def log_prob(self, input: Tensor, ids: Tensor) -> Tensor:
        """Exact log probability of the classes ids, [*] or [*, K]; collective."""
        return exact.log_prob(self._asked(), input, self.weight, ids, bias=self.bias)

    def topk(self, input: Tensor, k: int) -> TopK:
        """The k classes with the largest logits: values and class ids [*, k]; collective."""
        return exact.topk(self._asked(), input, self.weight, k, bias=self.bias)

    def extra_repr(self) -> str:
        """The sizes, and every option that differs from its default."""
        ranks, replicas = self.layout.ranks, self.layout.replicas
        place = f", rank={ranks.rank} of {ranks.size}, rows=[{self.shard.begin}, {self.shard.end})"
        if replicas.size > 1:
            place += f", replica={replicas.rank} of {replicas.size}"
        return super().extra_repr() + place

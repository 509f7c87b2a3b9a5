"""The package's functions in plain, readable PyTorch, on any device.

Tests compare the compiled kernels with these, and they serve where no kernel does: when the
library is not built, with SSC_BACKEND=reference, and on devices without kernels.
"""

from .exact import exact_loss_rows, logits
from .functional import (
    is_plain,
    prepare_rows,
    reference_negatives,
    sampled_softmax_loss,
    single_target,
)
from .loss import SampledSoftmaxDetails, loss_rows
from .negatives import negative_rows

__all__ = [
    "SampledSoftmaxDetails",
    "exact_loss_rows",
    "is_plain",
    "logits",
    "loss_rows",
    "negative_rows",
    "prepare_rows",
    "reference_negatives",
    "sampled_softmax_loss",
    "single_target",
]

"""The package's functions in plain, readable PyTorch, on any device.

Tests compare the compiled kernels with these, and they serve where no kernel does: when the
library is not built, with SSC_BACKEND=reference, and on devices without kernels.
"""

from .exact import exact_loss_rows, logits
from .loss import SampledSoftmaxDetails, loss_rows, sampled_softmax_loss

__all__ = [
    "SampledSoftmaxDetails",
    "exact_loss_rows",
    "logits",
    "loss_rows",
    "sampled_softmax_loss",
]

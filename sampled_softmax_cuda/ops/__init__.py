"""Everything that calls the compiled operators: a file for each stem, with the operators' fakes,
their autograd, and the choice between kernels and reference that is not the loss's own."""

from . import exact, loss, negatives, sample, total, unit_rows  # each registers its own

__all__ = ["exact", "loss", "negatives", "sample", "total", "unit_rows"]

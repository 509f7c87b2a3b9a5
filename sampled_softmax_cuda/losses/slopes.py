"""Derivatives of the formulas in targets.py, for a sweep that takes its gradients at once.

autograd gives the same, at several times the cost: a graph of some twenty operations on [B, T]
values is all that a small step feels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..objectives import GBCE, Softmax
from .targets import Step, TargetTerms, label_smoothing, only, with_margins


def slope_by_logits(
    terms: TargetTerms,
    s: Step,
    scale: Tensor,
    negatives: Tensor | None,
    smoothed: Tensor | None,
) -> Tensor:
    """[B, T], the derivative of sum_i scale_i loss_i by the corrected logits of the targets.

    Args:
        scale: [B], the factors of the rows.
        negatives: [B], that of the negatives' part by the targets' logsumexp; None for sigmoids.
        smoothed: [] bool, whether the label is smoothed at all; None: as the options say.
    """
    z, objective = terms.z, s.options.objective
    one = z.shape[1] == 1
    factor = scale[:, None]
    if negatives is not None:
        if one:
            slope = negatives[:, None]
        else:
            p = (z - terms.logit[:, None]).exp()
            slope = factor * (p - _shares(s, z)) + negatives[:, None] * p
    elif isinstance(objective, GBCE):
        beta = objective.beta(s.num_samples, s.num_classes)
        slope = torch.sigmoid(-z) * factor * (-beta * terms.share)
    elif one:
        slope = torch.sigmoid(-z) * -factor
    else:
        slope = factor * (torch.sigmoid(z) - _shares(s, z))
    smoothing = label_smoothing(s.options)
    if smoothing > 0.0:
        factor = factor if smoothed is None else factor * smoothed
        slope = slope + smoothing * factor * (1.0 if one else _shares(s, z))
    return only(s.there, slope)


def _shares(s: Step, z: Tensor) -> Tensor | float:
    """[B, 1], the share of the label that a row's true classes have each."""
    if s.there is None:
        return 1.0 / z.shape[1]
    return 1.0 / s.there.sum(dim=1, keepdim=True).clamp_min(1).to(z.dtype)


def slopes_of_logits(product: Tensor, bias: Tensor | None, s: Step) -> tuple[Tensor | float, ...]:
    """The derivatives of the targets' logits by their products and by their biases, [B, T] or a
    number that holds for all."""
    o, objective, x = s.options, s.options.objective, product
    by_bias: Tensor | float = 1.0 / o.temperature
    by_product: Tensor | float = 1.0
    angle = objective.angular_margin if isinstance(objective, Softmax) else 0.0
    if angle != 0.0:
        square, least = 1.0 - x * x, torch.finfo(x.dtype).eps
        # The sine is kept away from 0, where its slope is infinite: there it counts as constant.
        steep = torch.where(square > least, x, 0) * square.clamp_min(least).rsqrt()
        turned = math.cos(angle) + math.sin(angle) * steep
        by_product = torch.where(x > math.cos(math.pi - angle), turned, 1.0)
    if o.softcap is not None:
        x = with_margins(x, objective)
        if bias is not None:
            x = x + bias
        bounded = torch.tanh(x / (o.temperature * o.softcap))
        by_bias = (1.0 - bounded * bounded) / o.temperature
    return by_product * by_bias, by_bias

"""
PPO's clipped surrogate and its two equals, as pure functions of tensors.

Notation: ``ratio`` is the importance ratio ``w = π_new(a|s) / π_old(a|s)``, ``advantages`` is ``Â``,
``clip_range`` is ``ε``, and the band is ``[1 - ε, 1 + ε]``. Every function takes and returns tensors of
shape ``(B,)``, one entry per sample, and gives a value to be *maximised*; SB3 minimises its negative.
"""

import math
from typing import NamedTuple

import torch as th


class Partition(NamedTuple):
    """
    The three disjoint sets of samples that PPO-Clip treats differently.

    :param in_band: ``w ∈ [1 - ε, 1 + ε]`` or ``Â = 0``: clipping changes nothing. Bool tensor of shape ``(B,)``
    :param kill: outside the band and moving with the advantage: PPO-Clip has no gradient here. Bool, ``(B,)``
    :param pass_through: outside the band and moving against the advantage: the corrective gradient
        stays. Bool, ``(B,)``
    """

    in_band: th.Tensor
    kill: th.Tensor
    pass_through: th.Tensor


def partition(ratio: th.Tensor, advantages: th.Tensor, clip_range: float) -> Partition:
    """
    Split samples into in-band, kill and pass-through (Colletti & Holzinger 2026, arXiv:2606.23932).

    A sample with zero advantage has no gradient to kill or to keep, and counts as in-band.

    :param ratio: importance ratios, shape ``(B,)``
    :param advantages: advantages, shape ``(B,)``
    :param clip_range: half-width ε of the band, in ratio units
    :return: three boolean masks of shape ``(B,)``, exactly one of which is true for each sample
    """
    above, below = ratio > 1 + clip_range, ratio < 1 - clip_range
    positive, negative = advantages > 0, advantages < 0
    kill = (above & positive) | (below & negative)
    # SB3 lets a clip_range that falls linearly end a little below 0, where a ratio may be above and below at once
    pass_through = ((above & negative) | (below & positive)) & ~kill
    return Partition(in_band=~(kill | pass_through), kill=kill, pass_through=pass_through)


def clip_surrogate(ratio: th.Tensor, advantages: th.Tensor, clip_range: float) -> th.Tensor:
    """
    Form 1, PPO-Clip as published: ``min(w·Â, clip(w, 1 - ε, 1 + ε)·Â)``.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.

    :param ratio: importance ratios, shape ``(B,)``
    :param advantages: advantages, shape ``(B,)``
    :param clip_range: half-width ε of the band, in ratio units
    :return: objective per sample, shape ``(B,)``
    """
    return th.min(advantages * ratio, advantages * th.clamp(ratio, 1 - clip_range, 1 + clip_range))


def weight_space_surrogate(ratio: th.Tensor, advantages: th.Tensor, clip_range: float) -> th.Tensor:
    """
    Form 2, a penalty on the ratio: ``w·Â - Φ(w, Â)``; equal to form 1 in value and in gradient.

    ``Φ = (w - (1 + ε))·Â`` on the upper kill corner, ``(w - (1 - ε))·Â`` on the lower one, else 0.
    Source: Colletti & Holzinger 2026, arXiv:2606.23932.

    :param ratio: importance ratios, shape ``(B,)``
    :param advantages: advantages, shape ``(B,)``
    :param clip_range: half-width ε of the band, in ratio units
    :return: objective per sample, shape ``(B,)``
    """
    kill = partition(ratio, advantages, clip_range).kill
    edge = th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    # w·Â - (w - edge)·Â, multiplied out: at large ratios the difference would lose every digit.
    return advantages * th.where(kill, edge, ratio)


def per_sample_kl_surrogate(ratio: th.Tensor, advantages: th.Tensor, clip_range: float) -> th.Tensor:
    """
    Form 3, a KL penalty whose coefficient varies per sample: ``w·Â + β·log w`` with the detached
    ``β = -w·Â·1[kill]``; equal to form 1 in gradient, not in value.

    ``log w = log π_new - log π_old``, and ``log π_old`` is a constant, so the gradient is the one of
    ``w·Â + β·log π_new``. Source: Colletti & Holzinger 2026, arXiv:2606.23932, Theorem 1.

    :param ratio: importance ratios, shape ``(B,)``; must be positive
    :param advantages: advantages, shape ``(B,)``
    :param clip_range: half-width ε of the band, in ratio units
    :return: objective per sample, shape ``(B,)``
    """
    kill = partition(ratio, advantages, clip_range).kill
    beta = th.where(kill, -ratio * advantages, 0.0).detach()
    return ratio * advantages + beta * th.log(ratio)


def clip_gate(ratio: th.Tensor, advantages: th.Tensor, low: float, high: float) -> th.Tensor:
    """
    The gate of ``min(w·Â, clip(w, low, high)·Â)``: the share of a sample's gradient that the min removes.

    It is 1 on the kill set and 0 elsewhere, with one exception that keeps it equal to automatic
    differentiation to the last bit: a ratio one float outside the band may give two products that round
    to the same number, and at such a tie the derivative of ``min`` is split, so the gate is ½. That is
    rare, about once in 10⁸ samples, which is once in a few long trainings.

    :param ratio: importance ratios, shape ``(B,)``
    :param advantages: advantages, shape ``(B,)``
    :param low: lower end of the band, ``1 - ε`` for PPO-Clip
    :param high: upper end of the band, ``1 + ε`` for PPO-Clip
    :return: gate per sample, shape ``(B,)``
    """
    clipped = th.clamp(ratio, low, high)
    unclipped_value, clipped_value = advantages * ratio, advantages * clipped
    tie = (unclipped_value == clipped_value) & (clipped != ratio) & (advantages != 0)
    return (unclipped_value > clipped_value).to(ratio.dtype) + tie.to(ratio.dtype) / 2


def harmful_distance(ratio: th.Tensor, advantages: th.Tensor, low: float, high: float) -> th.Tensor:
    """
    Signed distance past the edge of the band in the direction of the advantage.

    ``d = w - high`` for ``Â > 0``, ``d = low - w`` for ``Â < 0`` and -∞ for ``Â = 0``, which no gate may
    touch: positive exactly on the kill set.
    Source: Colletti & Holzinger 2026, arXiv:2606.23932, §6.

    :param ratio: importance ratios, shape ``(B,)``
    :param advantages: advantages, shape ``(B,)``; only the sign matters
    :param low: lower end of the band
    :param high: upper end of the band
    :return: distance per sample in ratio units, shape ``(B,)``
    """
    return th.where(advantages > 0, ratio - high, th.where(advantages < 0, low - ratio, -math.inf))


def clipped_weight_share(ratio: th.Tensor, low: float, high: float) -> th.Tensor:
    """
    What a sample keeps of its gradient when its weight is clipped but its gradient is not: ``clip(w)/w``.

    It is ``1 - g`` of the objective ``sg(clip(w))·Â·log π``. Far outside the band it is small, and taking it back
    from g would lose its digits; a penalty multiplies the advantage with it directly.

    :param ratio: importance ratios, shape ``(B,)``
    :param low: lower end of the band
    :param high: upper end of the band
    :return: share per sample, shape ``(B,)``
    """
    return th.clamp(ratio, low, high) / ratio.clamp(min=th.finfo(ratio.dtype).tiny)


def clipped_weight_dual(ratio: th.Tensor, low: float, high: float) -> th.Tensor:
    """
    Integral of ``1 - clip(w)/w`` from 1 to w: ``w - c - c·log(w/c)`` with ``c = clip(w)``.

    :param ratio: importance ratios, shape ``(B,)``
    :param low: lower end of the band
    :param high: upper end of the band
    :return: ``Φ/Â`` per sample, shape ``(B,)``
    """
    clipped = th.clamp(ratio, low, high)
    return ratio - clipped - clipped * th.log(ratio.clamp(min=th.finfo(ratio.dtype).tiny) / clipped)

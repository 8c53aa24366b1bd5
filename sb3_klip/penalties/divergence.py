"""The divergences D that a scalar β multiplies, as functions of the importance ratio."""

from collections.abc import Callable
from dataclasses import dataclass

import torch as th


@dataclass(frozen=True)
class Divergence:
    """
    An estimate of ``KL(π_old || π_new)`` from samples of the old policy.

    :param value: from the log-ratio ``log w``, shape ``(B,)``, to the estimate per sample, shape ``(B,)``
    :param derivative: from the ratio w, shape ``(B,)``, to ``dD/dw``, shape ``(B,)``
    """

    value: Callable[[th.Tensor], th.Tensor]
    derivative: Callable[[th.Tensor], th.Tensor]


#: What is computed from the action distributions themselves, not from the ratio.
ANALYTIC = "analytic"

#: What is computed from the ratio: ``-log w``, and Schulman's ``(w - 1) - log w`` of lower variance,
#: http://joschu.net/blog/kl-approx.html
SAMPLED: dict[str, Divergence] = {
    "sample": Divergence(value=lambda log_ratio: -log_ratio, derivative=lambda ratio: -1 / ratio),
    "k3": Divergence(value=lambda log_ratio: th.expm1(log_ratio) - log_ratio, derivative=lambda ratio: 1 - 1 / ratio),
}

DIVERGENCES = (ANALYTIC, *SAMPLED)

"""Gates with a step at the edge of the band, PPO-Clip's first of all."""

import torch as th

from sb3_klip.penalties.base import GatePenalty, PenaltyInputs
from sb3_klip.penalties.registry import register_penalty
from sb3_klip.surrogates import clip_gate


@register_penalty("none")
class Unconstrained(GatePenalty):
    """
    No penalty: ``g = 0``, the importance-weighted policy gradient ``w·Â``.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 6.
    """

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return th.zeros_like(inputs.ratio)

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        return th.zeros_like(inputs.ratio)


@register_penalty("hard")
class Hard(GatePenalty):
    """
    PPO-Clip: ``g = 1[d > 0]``, every sample past the harmful edge loses its gradient.

    ``Φ = (w - clip(w))·Â`` on the kill set. Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7;
    Colletti & Holzinger 2026, arXiv:2606.23932, Theorem 1.
    """

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return clip_gate(inputs.ratio, inputs.advantages, *self.band(inputs))

    def surrogate(self, inputs: PenaltyInputs) -> th.Tensor:
        # The min form rather than w·Â - Φ: the same number, and in floating point the one that SB3 logs.
        clipped = th.clamp(inputs.ratio, *self.band(inputs))
        return th.min(inputs.advantages * inputs.ratio, inputs.advantages * clipped)

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        return inputs.ratio * inputs.advantages - self.surrogate(inputs)

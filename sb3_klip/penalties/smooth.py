"""Gates that act on every sample, inside the band too, and have no step at all."""

import torch as th

from sb3_klip.penalties.base import GatePenalty, PenaltyInputs, untouched_without_advantage
from sb3_klip.penalties.clipping import TwoSidedGate
from sb3_klip.penalties.parameters import Number
from sb3_klip.penalties.registry import register_penalty
from sb3_klip.surrogates import clipped_weight_dual, clipped_weight_share


@register_penalty("spo")
class SimplePolicyOptimization(GatePenalty):
    """
    SPO: a gate that grows linearly with how far the ratio has moved with the advantage,
    ``g = s·(w - 1)/ε``, ``s = sign(Â)``; it is 1 on the edge of the band and negative on the other side.

    ``Φ = |Â|/(2ε)·(w - 1)²``. Source: Xie et al. 2024, arXiv:2401.16025.
    """

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return th.sign(inputs.advantages) * (inputs.ratio - 1) / self._half_width(inputs)

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        move = inputs.ratio - 1
        # In this order an advantage of 0 gives 0, however large the move
        return inputs.advantages.abs() * move / (2 * self._half_width(inputs)) * move

    def _half_width(self, inputs: PenaltyInputs) -> float:
        low, high = self.band(inputs)
        # SB3 lets a clip_range that falls linearly end at 0, where this gate would be infinite
        return max((high - low) / 2, 1e-6)


@register_penalty("cispo")
class ClippedImportanceSampling(TwoSidedGate):
    """
    CISPO: every sample keeps its gradient, with the clipped importance weight: ``sg(clip(w))·Â·log π``, so
    ``g = 1 - clip(w)/w``.

    The paper does not clip from below: that is ``clip_range_low=1.0``.
    ``Φ = Â·(w - c - c·log(w/c))`` with ``c = clip(w)``. Source: MiniMax-M1 2025, arXiv:2506.13585.

    :param clip_range_low: half-width of the band below 1; the gate's ``clip_range`` if not given
    :param clip_range_high: half-width of the band above 1; the gate's ``clip_range`` if not given
    """

    clip_range_low = Number(None, above=0.0, at_most=1.0)
    clip_range_high = Number(None, above=0.0)

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return untouched_without_advantage(1 - clipped_weight_share(inputs.ratio, *self.band(inputs)), inputs)

    def effective_advantage(self, inputs: PenaltyInputs) -> th.Tensor:
        return inputs.advantages * clipped_weight_share(inputs.ratio, *self.band(inputs))

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        return inputs.advantages * clipped_weight_dual(inputs.ratio, *self.band(inputs))


@register_penalty("sapo")
class SoftAdaptive(GatePenalty):
    """
    SAPO: the gradient fades smoothly on both sides of ``w = 1``, ``1 - g = 4·σ(x)·(1 - σ(x))`` with
    ``x = τ·(w - 1)``; that is ``g = tanh²(x/2)``.

    ``Φ = Â·((w - 1) - (2/τ)·tanh(x/2))``. Source: SAPO 2025, arXiv:2511.20347, ``4/τ·σ(τ(w - 1))·Â``; with
    ``tau_pos = tau_neg`` it is the scopic objective of Chen et al. 2023, arXiv:2205.10047.

    :param tau_pos: how fast the gradient fades where the advantage is positive, per ratio unit
    :param tau_neg: the same where the advantage is negative
    """

    tau_pos = Number(1.0, above=0.0)
    tau_neg = Number(1.05, above=0.0)

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        gate = th.tanh(self._tau(inputs) * (inputs.ratio - 1) / 2) ** 2
        return untouched_without_advantage(gate, inputs)

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        tau, move = self._tau(inputs), inputs.ratio - 1
        return inputs.advantages * (move - 2 / tau * th.tanh(tau * move / 2))

    def _tau(self, inputs: PenaltyInputs) -> th.Tensor:
        tau_pos = th.full_like(inputs.ratio, self.tau_pos(inputs.progress_remaining))
        return th.where(inputs.advantages > 0, tau_pos, self.tau_neg(inputs.progress_remaining))


@register_penalty("pspo")
class ProbabilitySmoothing(GatePenalty):
    """
    PSPO: the new policy is mixed with the old one before the ratio is taken, ``(1 - α)·w + α``, which scales
    every gradient: ``g = α``.

    ``Φ = α·(w - 1)·Â``. Source: Dwyer et al. 2025, arXiv:2509.21282.

    :param alpha: share α of the old policy
    """

    alpha = Number(0.1, at_least=0.0, at_most=1.0)

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return untouched_without_advantage(th.full_like(inputs.ratio, self.alpha(inputs.progress_remaining)), inputs)

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        return self.alpha(inputs.progress_remaining) * (inputs.ratio - 1) * inputs.advantages

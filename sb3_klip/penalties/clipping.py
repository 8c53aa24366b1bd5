"""Gates with a step at the edge of the band: PPO-Clip and its relatives, which leave the inside of the band alone."""

import torch as th

from sb3_klip.penalties.base import GatePenalty, PenaltyInputs
from sb3_klip.penalties.parameters import Number
from sb3_klip.penalties.registry import register_penalty
from sb3_klip.surrogates import clip_gate, clipped_weight_dual, clipped_weight_share


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


class StepGate(GatePenalty):
    """
    A step at the harmful edge of the band: ``g = 1[d > 0]``, ``Φ = |Â|·max(d, 0)``.
    """

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return clip_gate(inputs.ratio, inputs.advantages, *self.band(inputs))

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        return inputs.advantages.abs() * self.distance(inputs).clamp(min=0.0)


@register_penalty("hard")
class Hard(StepGate):
    """
    PPO-Clip: ``g = 1[d > 0]``, every sample past the harmful edge loses its gradient.

    ``Φ = |Â|·max(d, 0)``. Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; Colletti & Holzinger 2026,
    arXiv:2606.23932, Theorem 1.
    """

    def surrogate(self, inputs: PenaltyInputs) -> th.Tensor:
        # The min form rather than w·Â - Φ: the same number, and in floating point the one that SB3 logs.
        clipped = th.clamp(inputs.ratio, *self.band(inputs))
        return th.min(inputs.advantages * inputs.ratio, inputs.advantages * clipped)


class TwoSidedGate(GatePenalty):
    """
    A gate whose band may have a half-width of its own on each side.

    :param clip_range_low: half-width of the band below 1; the gate's ``clip_range`` if not given
    :param clip_range_high: half-width of the band above 1; the gate's ``clip_range`` if not given
    """

    clip_range_low = Number(None, above=0.0, below=1.0)
    clip_range_high = Number(None, above=0.0, below=1.0)

    def band(self, inputs: PenaltyInputs) -> tuple[float, float]:
        low, high = super().band(inputs)
        if self.clip_range_low is not None:
            low = 1 - self.clip_range_low(inputs.progress_remaining)
        if self.clip_range_high is not None:
            high = 1 + self.clip_range_high(inputs.progress_remaining)
        return low, high


@register_penalty("clip_higher")
class ClipHigher(TwoSidedGate, Hard):
    """
    PPO-Clip with its own ε on each side, the upper one wider: ``g = 1[d > 0]`` for the band
    ``[1 - clip_range_low, 1 + clip_range_high]``.

    Source: DAPO, Yu et al. 2025, arXiv:2503.14476.

    :param clip_range_low: half-width of the band below 1; the gate's ``clip_range`` if not given
    :param clip_range_high: half-width of the band above 1
    """

    clip_range_high = Number(0.28, above=0.0, below=1.0)


@register_penalty("dual_clip")
class DualClip(StepGate):
    """
    PPO-Clip that also bounds the objective at ``c·Â`` where the advantage is negative:
    ``g = 1`` for ``d > 0``, and for ``Â < 0`` and ``w > c``.

    ``Φ = |Â|·max(d, 0)``, plus ``Â·(w - c)`` where ``Â < 0`` and ``w > c``. Source: Ye et al. 2020, arXiv:1912.09729.

    :param dual_clip: the bound c, in ratio units
    """

    dual_clip = Number(3.0, above=1.0)

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return th.where(self._past_bound(inputs) > 0, 1.0, super().gate(inputs))

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        return super().weight_space(inputs) + inputs.advantages * self._past_bound(inputs)

    def _past_bound(self, inputs: PenaltyInputs) -> th.Tensor:
        past = (inputs.ratio - self.dual_clip(inputs.progress_remaining)).clamp(min=0.0)
        return th.where(inputs.advantages < 0, past, 0.0)


@register_penalty("leaky")
class Leaky(StepGate):
    """
    PPO-Clip that keeps a share of the gradient past the edge: ``g = (1 - α)·1[d > 0]``.

    ``Φ = (1 - α)·|Â|·max(d, 0)``. It lies between ``hard`` (α = 0) and ``none`` (α = 1).

    :param alpha: share α of the gradient that is kept
    """

    alpha = Number(0.1, at_least=0.0, at_most=1.0)

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return (1 - self.alpha(inputs.progress_remaining)) * super().gate(inputs)

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        return (1 - self.alpha(inputs.progress_remaining)) * super().weight_space(inputs)


@register_penalty("rollback")
class Rollback(StepGate):
    """
    PPO-RB: past the edge the gradient is turned round, ``g = (1 + α)·1[d > 0]``.

    ``Φ = (1 + α)·|Â|·max(d, 0)``. Source: Truly PPO, Wang et al. 2019, arXiv:1903.07940.

    :param alpha: slope α of the way back
    """

    alpha = Number(0.3, at_least=0.0)

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return (1 + self.alpha(inputs.progress_remaining)) * super().gate(inputs)

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        return (1 + self.alpha(inputs.progress_remaining)) * super().weight_space(inputs)


@register_penalty("tanh")
class Tanh(StepGate):
    """
    PPOS: a rollback that fades with the distance from 1, on the kill set ``g = 1 + α·sech²(w - 1)``.

    ``Φ = |Â|·(d + α·|tanh(w - 1) - tanh(edge - 1)|)`` on the kill set, else 0.
    Source: Zhu & Rosendo 2021, arXiv:2012.02439.

    :param alpha: strength α of the rollback
    """

    alpha = Number(0.3, at_least=0.0)

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        sech_squared = 1 - th.tanh(inputs.ratio - 1) ** 2
        return (1 + self.alpha(inputs.progress_remaining) * sech_squared) * super().gate(inputs)

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        edge = th.clamp(inputs.ratio, *self.band(inputs))
        rollback = (th.tanh(inputs.ratio - 1) - th.tanh(edge - 1)).abs()
        rollback = th.where(self.distance(inputs) > 0, rollback, 0.0)
        return super().weight_space(inputs) + self.alpha(inputs.progress_remaining) * inputs.advantages.abs() * rollback


@register_penalty("gppo")
class GradientPreserving(GatePenalty):
    """
    Gradient-preserving clip: on the kill set the gradient stays, with the weight ``clip(w)`` instead of w, so
    ``g = 1 - clip(w)/w`` there.

    ``Φ = Â·(w - c - c·log(w/c))`` with ``c = clip(w)`` on the kill set, else 0.
    Source: Su et al. 2025, arXiv:2508.07629.
    """

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return 1 - self._kept(inputs)

    def effective_advantage(self, inputs: PenaltyInputs) -> th.Tensor:
        return inputs.advantages * self._kept(inputs)

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        dual = inputs.advantages * clipped_weight_dual(inputs.ratio, *self.band(inputs))
        return th.where(self.distance(inputs) > 0, dual, 0.0)

    def _kept(self, inputs: PenaltyInputs) -> th.Tensor:
        return th.where(self.distance(inputs) > 0, clipped_weight_share(inputs.ratio, *self.band(inputs)), 1.0)

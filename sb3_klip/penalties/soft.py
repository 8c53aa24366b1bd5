"""Gates that open and close gradually around the edge of the band."""

import math

import torch as th
from torch.nn import functional as F

from sb3_klip.penalties.base import GatePenalty, PenaltyInputs
from sb3_klip.penalties.parameters import Number
from sb3_klip.penalties.registry import register_penalty

#: Below this softness a soft gate is a step to float precision; it lets a softness be annealed to 0.
SMALLEST_SOFTNESS = 1e-12


class SoftGate(GatePenalty):
    """
    A gate with a width, in ratio units, over which it closes.

    :param softness: the width; towards 0 the gate becomes the step of ``hard``
    """

    softness = Number(0.05, above=0.0)

    def width(self, inputs: PenaltyInputs) -> float:
        """
        :param inputs: one minibatch
        :return: the softness at this time, kept off 0
        """
        return max(self.softness(inputs.progress_remaining), SMALLEST_SOFTNESS)


@register_penalty("linear_ramp")
class LinearRamp(SoftGate):
    """
    A ramp past the harmful edge: ``g = clamp(d/δ, 0, 1)``.

    ``Φ = |Â|·(r²/(2δ) + max(d - δ, 0))`` with ``r = clamp(d, 0, δ)``.
    Source: Colletti & Holzinger 2026, arXiv:2606.23932, §6.

    :param softness: length δ of the ramp, in ratio units
    """

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return (self.distance(inputs) / self.width(inputs)).clamp(0.0, 1.0)

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        distance, width = self.distance(inputs), self.width(inputs)
        on_ramp, beyond = distance.clamp(0.0, width), (distance - width).clamp(min=0.0)
        return inputs.advantages.abs() * (on_ramp * (on_ramp / width) / 2 + beyond)


@register_penalty("sigmoid")
class Sigmoid(SoftGate):
    """
    A smooth step around the harmful edge, half closed on it: ``g = σ(d/τ)``.

    ``Φ = |Â|·τ·(softplus(d/τ) - softplus(d₁/τ))``, d₁ being the distance at ``w = 1``.
    Source: the code of Colletti & Holzinger 2026, arXiv:2606.23932.

    :param softness: temperature τ, in ratio units
    """

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return th.sigmoid(self.distance(inputs) / self.width(inputs))

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        (low, high), width = self.band(inputs), self.width(inputs)
        at_one = th.where(inputs.advantages > 0, th.full_like(inputs.ratio, 1 - high), low - 1)
        integral = softplus(self.distance(inputs) / width) - softplus(at_one / width)
        return inputs.advantages.abs() * width * integral


@register_penalty("soft_min")
class SoftMin(SoftGate):
    """
    PPO-Clip with a soft minimum: outside the band, ``g = σ(s·(w - clip(w))/τ)``, the weight that a softmin of
    ``w·s`` and ``clip(w)·s`` at temperature τ gives to the clipped branch, ``s = sign(Â)``; inside, 0.

    On the kill side it rises from ½ at the edge to 1, on the corrective side it falls from ½ to 0.
    ``Φ = |Â|·τ·(softplus(s·(w - clip(w))/τ) - log 2)``.
    Source: the code of Colletti & Holzinger 2026, arXiv:2606.23932.

    :param softness: temperature τ, in ratio units
    """

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        gain = self._gain(inputs)
        return th.where(gain == 0, 0.0, th.sigmoid(gain / self.width(inputs)))

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        width = self.width(inputs)
        return inputs.advantages.abs() * width * (softplus(self._gain(inputs) / width) - math.log(2))

    def _gain(self, inputs: PenaltyInputs) -> th.Tensor:
        return th.sign(inputs.advantages) * (inputs.ratio - th.clamp(inputs.ratio, *self.band(inputs)))


def softplus(x: th.Tensor) -> th.Tensor:
    """
    :param x: any tensor
    :return: ``log(1 + exp(x))``, without the switch to ``x`` that PyTorch's makes at 20
    """
    return -F.logsigmoid(-x)

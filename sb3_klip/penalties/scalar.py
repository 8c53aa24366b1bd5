"""PPO-KL: one β for all samples, fixed or adapted to how far the policy moved."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch as th

from sb3_klip.penalties.base import Penalty, PenaltyInputs
from sb3_klip.penalties.divergence import ANALYTIC, DIVERGENCES, SAMPLED
from sb3_klip.penalties.parameters import Choice, Number
from sb3_klip.penalties.registry import register_penalty


class ScalarPenalty(Penalty):
    """
    ``L = E[w·Â - β·D]`` with one β for all samples, D as the user chooses.

    :param divergence: ``"analytic"`` is ``KL(π_old || π_new)`` of the action distributions; ``"sample"`` is
        ``-log w`` and ``"k3"`` is ``(w - 1) - log w``, estimates of it from the actions that were taken
    """

    divergence = Choice(ANALYTIC, DIVERGENCES)

    @abstractmethod
    def coefficient(self, progress_remaining: float) -> float:
        """
        :param progress_remaining: training progress, from 1 at the beginning to 0 at the end
        :return: the scalar β
        """

    @property
    def uses_kl(self) -> bool:  # type: ignore[override]
        return self.divergence == ANALYTIC

    def beta(self, inputs: PenaltyInputs) -> th.Tensor:
        return th.full_like(inputs.ratio, self.coefficient(inputs.progress_remaining))

    def effective_advantage(self, inputs: PenaltyInputs) -> th.Tensor:
        if self.uses_kl:
            return inputs.advantages
        return inputs.advantages - self.beta(inputs) * SAMPLED[self.divergence].derivative(inputs.ratio)

    def kl_coef(self, inputs: PenaltyInputs) -> th.Tensor:
        return self.beta(inputs) if self.uses_kl else super().kl_coef(inputs)

    def surrogate(self, inputs: PenaltyInputs) -> th.Tensor:
        surrogate = inputs.ratio * inputs.advantages
        if self.uses_kl:
            return surrogate
        return surrogate - self.beta(inputs) * SAMPLED[self.divergence].value(th.log(inputs.ratio))


@register_penalty("kl_fixed")
class FixedKL(ScalarPenalty):
    """
    PPO-KL with a constant coefficient. Source: Schulman et al. 2017, arXiv:1707.06347, eq. 8.

    :param beta: the coefficient β
    :param divergence: see :class:`ScalarPenalty`
    """

    beta_schedule = Number(1.0, name="beta", at_least=0.0)

    def coefficient(self, progress_remaining: float) -> float:
        return self.beta_schedule(progress_remaining)

    def after_update(self, mean_kl: Callable[[str], float], progress_remaining: float) -> dict[str, float]:
        return {"beta": self.coefficient(progress_remaining)}


@register_penalty("kl_adaptive")
class AdaptiveKL(ScalarPenalty):
    """
    PPO-KL whose coefficient follows a target: after each rollout's update, β is multiplied by ``factor`` where
    the policy moved more than ``tolerance·target``, and divided by it where it moved less than
    ``target/tolerance``. The move is the mean of the divergence over the whole rollout, under the policy
    after the update. Source: Schulman et al. 2017, arXiv:1707.06347, §4.

    :param target: divergence per update to aim at, in nats
    :param beta_init: the coefficient at the beginning
    :param divergence: see :class:`ScalarPenalty`
    :param factor: how much β changes at a time
    :param tolerance: how far from the target nothing changes yet, as a factor
    :param beta_min: β does not fall below this
    :param beta_max: β does not rise above this
    :raises ValueError: also if ``beta_init`` is not between ``beta_min`` and ``beta_max``
    """

    target = Number(0.02, above=0.0)
    beta_init = Number(1.0, above=0.0)
    factor = Number(2.0, above=1.0)
    tolerance = Number(1.5, at_least=1.0)
    beta_min = Number(1e-4, above=0.0)
    beta_max = Number(1e4, above=0.0)

    def __init__(self, /, **parameters: Any):
        super().__init__(**parameters)
        low, start, high = self.beta_min(1.0), self.beta_init(1.0), self.beta_max(1.0)
        if not low <= start <= high:
            raise ValueError(
                f"penalty {self.name!r}: beta_min <= beta_init <= beta_max must hold, got {low:g}, {start:g} and {high:g}"
            )
        self._beta = start

    def coefficient(self, progress_remaining: float) -> float:
        return self._beta

    def after_update(self, mean_kl: Callable[[str], float], progress_remaining: float) -> dict[str, float]:
        used, moved, target = self._beta, mean_kl(self.divergence), self.target(progress_remaining)
        tolerance, factor = self.tolerance(progress_remaining), self.factor(progress_remaining)
        if moved > tolerance * target:
            self._beta *= factor
        elif moved < target / tolerance:
            self._beta /= factor
        self._beta = min(max(self._beta, self.beta_min(progress_remaining)), self.beta_max(progress_remaining))
        return {"beta": used, "kl": moved}

    def state_dict(self) -> dict[str, Any]:
        return {"beta": self._beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._beta = float(state["beta"])

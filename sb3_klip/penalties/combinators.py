"""Penalties made of two others: by side of the ratio, by sign of the advantage, by position in the episode."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch as th

from sb3_klip.penalties.base import Penalty, PenaltyInputs
from sb3_klip.penalties.parameters import Choice, Number, Parameter
from sb3_klip.penalties.registry import adopt_penalty, make_penalty, register_penalty


class Part(Parameter):
    """
    A parameter that is a penalty itself, in any form that :func:`make_penalty` takes.

    :param default: name of the penalty that it is where the user gives none
    """

    def parse(self, value: Any) -> Penalty:
        try:
            return adopt_penalty(make_penalty(value))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def dump(self, parsed: Penalty) -> dict[str, Any]:
        return parsed.spec()


class Combination(Penalty):
    """
    Two penalties, mixed sample by sample. All that a penalty returns is linear in its coefficients, so mixing
    what the parts return is mixing the parts.
    """

    @abstractmethod
    def mix(self, values: list[th.Tensor], inputs: PenaltyInputs) -> th.Tensor:
        """
        :param values: what the two parts returned, each of shape ``(B,)``
        :param inputs: the minibatch that they returned it for
        :return: the mixture, shape ``(B,)``
        """

    def parts(self) -> dict[str, Penalty]:
        """
        :return: the two parts by the names of their parameters, in the order in which :meth:`mix` takes them
        """
        values = {name: getattr(self, parameter.attribute) for name, parameter in self.parameters().items()}
        return {name: value for name, value in values.items() if isinstance(value, Penalty)}

    @property
    def uses_positions(self) -> bool:  # type: ignore[override]
        return any(part.uses_positions for part in self.parts().values())

    @property
    def uses_kl(self) -> bool:  # type: ignore[override]
        return any(part.uses_kl for part in self.parts().values())

    def beta(self, inputs: PenaltyInputs) -> th.Tensor:
        return self._mix(lambda part: part.beta(inputs), inputs)

    def effective_advantage(self, inputs: PenaltyInputs) -> th.Tensor:
        return self._mix(lambda part: part.effective_advantage(inputs), inputs)

    def kl_coef(self, inputs: PenaltyInputs) -> th.Tensor:
        return self._mix(lambda part: part.kl_coef(inputs), inputs)

    def surrogate(self, inputs: PenaltyInputs) -> th.Tensor:
        return self._mix(lambda part: part.surrogate(inputs), inputs)

    def after_update(self, mean_kl: Callable[[str], float], progress_remaining: float) -> dict[str, float]:
        return {
            f"{name}/{key}": value
            for name, part in self.parts().items()
            for key, value in part.after_update(mean_kl, progress_remaining).items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items() if part.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            if name in state:
                part.load_state_dict(state[name])

    def _mix(self, call: Callable[[Penalty], th.Tensor], inputs: PenaltyInputs) -> th.Tensor:
        largest = th.finfo(inputs.ratio.dtype).max / 4
        # A part may be infinite far from the band, and a mixture of two infinities would be NaN
        return self.mix([th.clamp(call(part), -largest, largest) for part in self.parts().values()], inputs)


@register_penalty("asymmetric")
class Asymmetric(Combination):
    """
    One penalty on each side: ``upper`` where ``w > 1`` and ``lower`` where ``w < 1``, or by the sign of the
    advantage. In between, where neither is the case, their mean.

    :param upper: penalty of the samples whose ratio (or advantage) is above 1 (or 0)
    :param lower: penalty of the samples below
    :param by: ``"ratio"`` or ``"advantage"``
    """

    upper = Part("hard")
    lower = Part("hard")
    by = Choice("ratio", ("ratio", "advantage"))

    def mix(self, values: list[th.Tensor], inputs: PenaltyInputs) -> th.Tensor:
        upper, lower = values
        side = inputs.ratio - 1 if self.by == "ratio" else inputs.advantages
        return th.where(side > 0, upper, th.where(side < 0, lower, (upper + lower) / 2))


@register_penalty("position_aware")
class PositionAware(Combination):
    """
    One penalty early in an episode and another late, ``β = (1 - m)·β_early + m·β_late`` with
    ``m = σ((position - midpoint)/width)``, the position being the number of steps since the episode began.

    :param early: penalty at the beginning of an episode
    :param late: penalty towards its end
    :param midpoint: position at which both count the same, in steps
    :param width: how gradually one gives way to the other, in steps
    """

    early = Part("hard")
    late = Part("hard")
    midpoint = Number(100.0, at_least=0.0)
    width = Number(20.0, above=0.0)

    uses_positions = True

    def mix(self, values: list[th.Tensor], inputs: PenaltyInputs) -> th.Tensor:
        early, late = values
        if inputs.positions is None:
            raise ValueError(f"penalty {self.name!r} needs the positions of the samples in their episodes")
        progress_remaining = inputs.progress_remaining
        past = (inputs.positions - self.midpoint(progress_remaining)) / max(self.width(progress_remaining), 1e-6)
        return th.lerp(early, late, th.sigmoid(past).to(early.dtype))

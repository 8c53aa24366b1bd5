"""What a shape of β_t is: the template ``L = E[w·Â - β·D]`` and its two kinds of coefficient."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th

from sb3_klip.penalties.parameters import Number, Parameter
from sb3_klip.surrogates import harmful_distance

#: Points of the midpoint rule for a shape without a closed integral.
QUADRATURE_POINTS = 64


@dataclass(frozen=True)
class PenaltyInputs:
    """
    What a penalty may look at, for one minibatch of ``B`` samples.

    :param ratio: importance ratios ``w = π_new(a|s) / π_old(a|s)``, shape ``(B,)``, without gradient
    :param advantages: advantages Â as the update uses them (normalized or not), shape ``(B,)``
    :param clip_range: half-width ε of the band, in ratio units: the algorithm's ``clip_range`` at this time
    :param positions: steps since the episode began, shape ``(B,)``, given to penalties that set
        :attr:`Penalty.uses_positions`
    :param progress_remaining: SB3's training progress, from 1 at the beginning to 0 at the end
    """

    ratio: th.Tensor
    advantages: th.Tensor
    clip_range: float
    positions: th.Tensor | None = None
    progress_remaining: float = 1.0


class Penalty(ABC):
    """
    A coefficient times a divergence, ``L = E[w·Â - β·D]``: what keeps the new policy near the old one.

    The sampled divergence ``D = -log w`` acts through the ratio, where ``∇L = E[∇w·(Â + β/w)]``; the bracket
    is the **effective advantage**, and all that the update needs. The analytic divergence
    ``D = KL(π_old || π_new)`` acts through the whole distribution; a penalty on it gives :meth:`kl_coef`.
    Source: Colletti & Holzinger 2026, arXiv:2606.23932.

    Parameters are declared as class attributes (:class:`~sb3_klip.penalties.parameters.Number`), and given as
    keyword arguments of the same names.

    :param parameters: values of the declared parameters, where not the default
    :raises ValueError: for an unknown parameter, or a value outside its range
    """

    #: Name in specs: the registered one, or the dotted path of the class.
    name: ClassVar[str]
    #: Whether :attr:`PenaltyInputs.positions` must be given.
    uses_positions: bool = False
    #: Whether :meth:`kl_coef` is ever other than zero, so that the analytic KL must be computed.
    uses_kl: bool = False

    def __init__(self, /, **parameters: Any):
        declared = self.parameters()
        for given in parameters:
            if given not in declared:
                takes = ", ".join(declared) or "no parameters"
                raise ValueError(f"penalty {self.name!r} has no parameter {given!r}; it takes {takes}")
        for name, parameter in declared.items():
            try:
                setattr(self, parameter.attribute, parameters.get(name, parameter.default))
            except ValueError as error:
                raise ValueError(f"penalty {self.name!r}: {error}") from error

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = f"{cls.__module__}.{cls.__qualname__}"

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """
        :return: the declared parameters by name, the class's own before those of its bases
        """
        found: dict[str, Parameter] = {}
        for base in cls.__mro__:
            for value in vars(base).values():
                if isinstance(value, Parameter):
                    found.setdefault(value.name, value)
        return found

    @abstractmethod
    def beta(self, inputs: PenaltyInputs) -> th.Tensor:
        """
        :param inputs: one minibatch
        :return: the coefficient β of the divergence, shape ``(B,)``
        """

    def effective_advantage(self, inputs: PenaltyInputs) -> th.Tensor:
        """
        What stands in the place of the advantage in the policy gradient: ``Â + β/w``.

        :param inputs: one minibatch
        :return: effective advantage per sample, shape ``(B,)``
        """
        return inputs.advantages + self.beta(inputs) / inputs.ratio

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        """
        The share of the sample's policy gradient that the penalty takes away: ``g = 1 - Â_eff/Â``.

        :param inputs: one minibatch
        :return: gate per sample, 0 where the advantage is 0, shape ``(B,)``
        """
        return untouched_without_advantage(1 - self.effective_advantage(inputs) / inputs.advantages, inputs)

    def kl_coef(self, inputs: PenaltyInputs) -> th.Tensor:
        """
        :param inputs: one minibatch
        :return: the coefficient of the analytic ``KL(π_old || π_new)``, shape ``(B,)``
        """
        return th.zeros_like(inputs.ratio)

    def surrogate(self, inputs: PenaltyInputs) -> th.Tensor:
        """
        The objective in ratio space, ``Â + ∫₁ʷ Â_eff dx``, without the term of :meth:`kl_coef`: it is logged, and
        never differentiated.

        Here the integral is taken numerically (midpoint rule with :data:`QUADRATURE_POINTS` points, so the effective
        advantage is computed for that many times B samples); shapes override this with their closed form.

        :param inputs: one minibatch
        :return: objective per sample, to be maximised, shape ``(B,)``
        """
        ratio, advantages, positions = inputs.ratio, inputs.advantages, inputs.positions
        points = (th.arange(QUADRATURE_POINTS, dtype=ratio.dtype, device=ratio.device) + 0.5) / QUADRATURE_POINTS
        on_the_way = PenaltyInputs(
            ratio=(1 + points[:, None] * (ratio - 1)).flatten(),
            advantages=advantages.expand(QUADRATURE_POINTS, -1).flatten(),
            clip_range=inputs.clip_range,
            positions=None if positions is None else positions.expand(QUADRATURE_POINTS, -1).flatten(),
            progress_remaining=inputs.progress_remaining,
        )
        mean = self.effective_advantage(on_the_way).view(QUADRATURE_POINTS, -1).mean(dim=0)
        return advantages + (ratio - 1) * mean

    def after_update(self, mean_kl: Callable[[str], float], progress_remaining: float) -> dict[str, float]:
        """
        Called when a rollout's update is over, for a penalty that adapts to how far the policy moved.

        :param mean_kl: the mean over the rollout of a divergence between the policy before and the policy
            after the update, computed when called; its argument names the divergence, see
            :data:`~sb3_klip.penalties.divergence.DIVERGENCES`
        :param progress_remaining: training progress, from 1 at the beginning to 0 at the end
        :return: what is to be logged of this update besides the diagnostics, under ``klip/<key>``
        """
        return {}

    def spec(self) -> dict[str, Any]:
        """
        :return: plain JSON from which :func:`~sb3_klip.penalties.make_penalty` makes this penalty again
        :raises ValueError: if a parameter is a Python function, or the penalty holds more than its declared parameters
        """
        declared = {parameter.attribute for parameter in self.parameters().values()}
        others = vars(self).keys() - declared
        if others and type(self).state_dict is Penalty.state_dict:
            raise ValueError(
                f"{type(self).__name__} keeps {', '.join(sorted(others))}, which its spec would lose; "
                "declare them as parameters, such as Number(0.1), or override spec() or state_dict()"
            )
        values = {name: par.dump(getattr(self, par.attribute)) for name, par in self.parameters().items()}
        return {"name": self.name, **values}

    def state_dict(self) -> dict[str, Any]:
        """
        :return: plain JSON of what changes during training, empty for most penalties
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  (most penalties have no state)
        """
        :param state: what :meth:`state_dict` returned
        """

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={getattr(self, par.attribute)!r}" for name, par in self.parameters().items())
        return f"{type(self).__name__}({arguments})"


class GatePenalty(Penalty):
    """
    The per-sample KL family: ``D = -log w`` with ``β = -w·Â·g``, so the effective advantage is ``Â·(1 - g)``.

    The gate g says how much of a sample's gradient is taken away: 0 leaves the sample alone, 1 kills it, more
    than 1 rolls it back. Every ratio surrogate ``f(w, Â)`` is one gate, ``g = 1 - (∂f/∂w)/Â``. A shape of
    one's own is a subclass with one method, :meth:`gate`.

    :param clip_range: own half-width ε of the band, in ratio units; ``None`` means the algorithm's ``clip_range``
    :raises ValueError: for an unknown parameter, or a value outside its range
    """

    clip_range = Number(None, above=0.0, below=1.0)

    @abstractmethod
    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        """
        :param inputs: one minibatch
        :return: gate per sample, shape ``(B,)``; what it says where the advantage is 0 has no effect
        """

    def band(self, inputs: PenaltyInputs) -> tuple[float, float]:
        """
        :param inputs: one minibatch
        :return: lower and upper end of the band, in ratio units
        """
        epsilon = inputs.clip_range if self.clip_range is None else self.clip_range(inputs.progress_remaining)
        return 1 - epsilon, 1 + epsilon

    def distance(self, inputs: PenaltyInputs) -> th.Tensor:
        """
        :param inputs: one minibatch
        :return: signed distance d past the harmful edge of the band, in ratio units, shape ``(B,)``; see
            :func:`~sb3_klip.surrogates.harmful_distance`
        """
        return harmful_distance(inputs.ratio, inputs.advantages, *self.band(inputs))

    def beta(self, inputs: PenaltyInputs) -> th.Tensor:
        return -inputs.ratio * inputs.advantages * self.gate(inputs)

    def effective_advantage(self, inputs: PenaltyInputs) -> th.Tensor:
        return inputs.advantages * (1 - self.gate(inputs))

    def weight_space(self, inputs: PenaltyInputs) -> th.Tensor:
        """
        The gate's dual in ratio space, ``Φ(w, Â) = Â·∫₁ʷ g(x, Â) dx``: then ``w·Â - Φ`` has the gradient
        ``Â·(1 - g)``. Here it is what the numerical integral of :meth:`Penalty.surrogate` leaves of ``w·Â``; shapes
        override it with their closed form.

        :param inputs: one minibatch
        :return: penalty Φ per sample, shape ``(B,)``
        """
        return inputs.ratio * inputs.advantages - Penalty.surrogate(self, inputs)

    def surrogate(self, inputs: PenaltyInputs) -> th.Tensor:
        return inputs.ratio * inputs.advantages - self.weight_space(inputs)


def untouched_without_advantage(gate: th.Tensor, inputs: PenaltyInputs) -> th.Tensor:
    """
    Open a gate where there is no gradient to take away.

    :param gate: gate per sample, shape ``(B,)``
    :param inputs: the minibatch that it is for
    :return: the gate, 0 where the advantage is 0, shape ``(B,)``
    """
    return th.where(inputs.advantages == 0, 0.0, gate)

"""Keeps a penalty with an algorithm: given by the user, changed later, saved and loaded."""

import io
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_klip.penalties import Penalty, make_penalty
from sb3_klip.penalties.checks import check_penalty
from sb3_klip.penalties.registry import adopt_penalty, dump_penalty, import_shapes


class PenalizedAlgorithm(OnPolicyAlgorithm):
    """
    An on-policy algorithm with a :attr:`penalty`.

    In a saved model the penalty is plain JSON, its spec and its state, so that it can be read in the file and needs
    no unpickling.
    """

    _penalty: Penalty

    @property
    def penalty(self) -> Penalty:
        """
        The shape of β_t. It can be set to anything that :func:`~sb3_klip.penalties.make_penalty` takes.
        """
        return self._penalty

    @penalty.setter
    def penalty(self, penalty: Any) -> None:
        self._set_penalty(penalty)

    def _set_penalty(self, penalty: Any, penalty_kwargs: Mapping[str, Any] | None = None) -> None:
        """
        :param penalty: a penalty in any form that users write
        :param penalty_kwargs: parameters of the shape, where ``penalty`` does not hold them
        :raises ValueError: for an unknown penalty, or a parameter that is not the shape's or out of its range
        """
        if penalty_kwargs and not isinstance(penalty_kwargs, Mapping):
            raise ValueError(f"penalty_kwargs must be a dict such as {{'softness': 0.05}}, got {penalty_kwargs!r}")
        made = adopt_penalty(make_penalty(penalty, **(penalty_kwargs or {})))
        check_penalty(made)
        self._penalty = made

    def _setup_model(self) -> None:
        super()._setup_model()
        # `load` puts what `save` stored, or what its caller gave instead, into the instance's dict, where the property
        # hides it. A caller who gives parameters alone changes those of the stored spec.
        given = self.__dict__.pop("penalty", self._penalty)
        penalty_kwargs = self.__dict__.pop("penalty_kwargs", None)
        state = self.__dict__.pop("penalty_state", None)
        if state is not None:
            import_shapes(state["modules"])
        if isinstance(given, Mapping) and isinstance(penalty_kwargs, Mapping):
            given, penalty_kwargs = {**given, **penalty_kwargs}, None
        self._set_penalty(given, penalty_kwargs)
        # What the penalty has learned goes on where the same penalty is asked for, as RL Zoo does to continue a run
        if state is not None and self._penalty.spec() == state["spec"]:
            self._penalty.load_state_dict(state["values"])

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        # SB3 writes what is in the instance's dict: as JSON what is plain JSON, by pickling the rest
        self.__dict__.update(dump_penalty(self._penalty))
        try:
            super().save(path, exclude, include)
        finally:
            del self.__dict__["penalty"], self.__dict__["penalty_state"]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_penalty"]

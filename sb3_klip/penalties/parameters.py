"""Parameters of a shape: declared as class attributes, checked once, written to JSON and read back."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

ZOO_LINEAR_PREFIX = "lin_"


class Parameter:
    """
    One declared parameter of a penalty, a descriptor: reading it gives what :meth:`parse` made of the argument.

    :param default: value where the user gives none, in the form that the user would write
    :param name: the argument's name, where it cannot be the attribute's
    """

    def __init__(self, default: Any, name: str = ""):
        self.default = default
        self.name = name

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.attribute = attribute
        self.name = self.name or attribute

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else instance.__dict__[self.attribute]

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.attribute] = self.parse(value)

    def parse(self, value: Any) -> Any:
        """
        Turn the user's argument into what the penalty computes with.

        :param value: argument as the user wrote it, in Python, YAML or JSON
        :return: the object that reading the attribute gives
        :raises ValueError: if the argument is not admissible; says what is
        """
        raise NotImplementedError()

    def dump(self, parsed: Any) -> Any:
        """
        :param parsed: what :meth:`parse` returned
        :return: plain JSON from which :meth:`parse` makes the same again
        """
        raise NotImplementedError()


class ScheduledNumber:
    """
    A number that may depend on the training progress, as SB3's ``clip_range`` may.

    :param schedule: SB3 schedule, from progress remaining (1 at the beginning, 0 at the end) to a number
    :param source: the user's argument, from which the JSON form is made
    """

    def __init__(self, schedule: FloatSchedule, source: Any):
        self.schedule = schedule
        self.source = source

    def __call__(self, progress_remaining: float) -> float:
        # SB3's progress falls below 0 when the last rollout overshoots the total number of timesteps,
        # where a linear schedule would leave the range of its parameter.
        return self.schedule(min(max(progress_remaining, 0.0), 1.0))

    @property
    def is_constant(self) -> bool:
        return isinstance(self.schedule.value_schedule, ConstantSchedule)

    def __repr__(self) -> str:
        return repr(self.source)


class Number(Parameter):
    """
    A number, or a schedule of one: everything that SB3's ``clip_range`` takes, and the RL Zoo's ``"lin_0.1"``.

    Reading it gives a function of the progress remaining, so a gate writes
    ``self.softness(inputs.progress_remaining)``. A schedule may end *on* an open bound: a softness that is
    annealed to 0 is the hard limit.

    :param default: as :class:`Parameter`; ``None`` makes the parameter optional
    :param name: as :class:`Parameter`
    :param above: every value must be greater
    :param below: every value must be smaller
    :param at_least: every value must be at least this
    :param at_most: every value must be at most this
    """

    def __init__(
        self,
        default: Any,
        name: str = "",
        *,
        above: float = -math.inf,
        below: float = math.inf,
        at_least: float = -math.inf,
        at_most: float = math.inf,
    ):
        super().__init__(default, name)
        self.above, self.below, self.at_least, self.at_most = above, below, at_least, at_most

    @property
    def range_text(self) -> str:
        """:return: the admissible range in words, for example ``> 0 and <= 1``"""
        bounds = [(">", self.above), (">=", self.at_least), ("<", self.below), ("<=", self.at_most)]
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound)) or "any finite number"

    def parse(self, value: Any) -> ScheduledNumber | None:
        if value is None and self.default is None:
            return None
        if isinstance(value, ScheduledNumber):
            number = value
        else:
            number = ScheduledNumber(self._schedule(value), dict(value) if isinstance(value, Mapping) else value)
        # A function of the user's is known by its values alone: its two ends and its middle are looked at here.
        for progress_remaining in (1.0,) if number.is_constant else (1.0, 0.5, 0.0):
            try:
                current = number(progress_remaining)
            except (TypeError, ValueError, ArithmeticError) as error:
                raise ValueError(
                    f"{self.name} must be a function of the progress remaining that returns a number, "
                    f"but at {progress_remaining} it raised: {error}"
                ) from error
            self._check(current, open_ends=number.is_constant)
        return number

    def dump(self, parsed: ScheduledNumber | None) -> Any:
        if parsed is None:
            return None
        if isinstance(parsed.source, str):
            return parsed.source
        schedule = parsed.schedule.value_schedule
        if isinstance(schedule, ConstantSchedule):
            return schedule.val
        if isinstance(schedule, LinearSchedule):
            return {"start": schedule.start, "end": schedule.end, "end_fraction": schedule.end_fraction}
        raise ValueError(
            f"{self.name}={parsed.source!r} is a function, which plain JSON cannot hold: "
            'give a number, "lin_<start>", or {"start": ..., "end": ..., "end_fraction": ...} instead'
        )

    def _schedule(self, value: Any) -> FloatSchedule:
        if isinstance(value, str) and value.startswith(ZOO_LINEAR_PREFIX):
            try:
                return FloatSchedule(LinearSchedule(float(value.removeprefix(ZOO_LINEAR_PREFIX)), 0.0, 1.0))
            except ValueError:
                raise ValueError(f"{self.name}={value!r}: what follows {ZOO_LINEAR_PREFIX!r} must be a number") from None
        if isinstance(value, Mapping):
            schedule = {"end_fraction": 1.0, **value}
            if schedule.keys() != {"start", "end", "end_fraction"} or not all(map(is_number, schedule.values())):
                raise ValueError(
                    f"{self.name}={dict(value)!r}: a schedule is made of the numbers start, end and end_fraction "
                    "(1.0 if not given)"
                )
            if not 0 < schedule["end_fraction"] <= 1:
                raise ValueError(f"{self.name}: end_fraction must be > 0 and <= 1, got {schedule['end_fraction']:g}")
            return FloatSchedule(LinearSchedule(**schedule))
        if not is_number(value) and not callable(value):
            raise ValueError(
                f"{self.name} must be a number {self.range_text}, a function of the progress remaining, "
                f'or "lin_<start>" for a linear decrease to 0, got {value!r}{_advice(value)}'
            )
        try:
            return FloatSchedule(value if callable(value) else float(value))
        except OverflowError:
            raise ValueError(f"{self.name} must be {self.range_text}, got a number that no float can hold") from None

    def _check(self, value: float, open_ends: bool) -> None:
        inside = self.at_least <= value <= self.at_most and self.above <= value <= self.below
        if open_ends:
            inside = inside and value != self.above and value != self.below
        if not (inside and math.isfinite(value)):
            raise ValueError(f"{self.name} must be {self.range_text}, got {value:g}")


class Choice(Parameter):
    """
    One of a few words.

    :param default: as :class:`Parameter`
    :param options: admissible words
    """

    def __init__(self, default: str, options: Sequence[str]):
        super().__init__(default)
        self.options = tuple(options)

    def parse(self, value: Any) -> str:
        if value not in self.options:
            raise ValueError(f"{self.name} must be one of {', '.join(map(repr, self.options))}, got {value!r}")
        return value

    def dump(self, parsed: str) -> str:
        return parsed


def is_number(value: Any) -> bool:
    """
    :param value: anything
    :return: whether it is a number, which ``True`` and ``False`` are not meant to be
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def _advice(value: Any) -> str:
    try:
        float(value)
    except (TypeError, ValueError):
        return ""
    return ", which is text: write it without quotes, and 1e-3 in YAML as 1.0e-3" if isinstance(value, str) else ""

"""A penalty in words: its name, its parameters, and what a picture of it cannot show."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_klip.penalties import Penalty
from sb3_klip.penalties.parameters import ScheduledNumber
from sb3_klip.plots.probe import Probe

GATE_LABEL = "gate g (share of the gradient removed)"
ADVANTAGE_LABEL = "advantage Â"
RATIO_LABEL = r"importance ratio $w = \pi_{new}\,/\,\pi_{old}$"
KL_TEXT = r"KL$(\pi_{old}\,\|\,\pi_{new})$"


def parameters_in_words(penalty: Penalty) -> list[str]:
    """
    :param penalty: the penalty
    :return: ``name=value`` of each declared parameter that is set, parts of a combination included
    """
    values = {name: getattr(penalty, parameter.attribute) for name, parameter in penalty.parameters().items()}
    return [f"{name}={_in_words(value)}" for name, value in values.items() if value is not None]


def title(penalty: Penalty) -> str:
    """
    :param penalty: the penalty
    :return: its name and its parameters, as one would call it
    """
    parameters = ", ".join(parameters_in_words(penalty))
    return f"{penalty.name}({parameters})" if parameters else penalty.name


def changes_in_training(penalty: Penalty) -> bool:
    """
    :param penalty: the penalty
    :return: whether one of its numbers, or of its parts', is a schedule
    """
    values = [getattr(penalty, parameter.attribute) for parameter in penalty.parameters().values()]
    schedules = [value for value in values if isinstance(value, ScheduledNumber) and not value.is_constant]
    return bool(schedules) or any(changes_in_training(value) for value in values if isinstance(value, Penalty))


def conditions(probes: Sequence[Probe]) -> str:
    """
    :param probes: the penalty at one position, or at an early and a late one
    :return: what else the picture depends on, and what it leaves out
    """
    probe = probes[0]
    notes = [f"ε = {number(probe.clip_range)}"]
    if probe.penalty.uses_positions and len(probes) == 1:
        notes.append(f"position {number(probe.position)}")
    if changes_in_training(probe.penalty) or probe.progress_remaining != 1:
        notes.append(f"progress remaining {number(probe.progress_remaining)}")
    if probe.penalty.uses_kl:
        notes.append(kl_note(probe).replace("\n", " "))
    return "; ".join(notes)


def kl_note(probe: Probe) -> str:
    """
    :param probe: a penalty on the analytic KL
    :return: in three short lines, what a picture over the ratio cannot show of it
    """
    beta = probe.beta(np.linspace(0.1, 2.0, 20), 1.0)
    value = f" = {number(beta[0])}" if beta.min() == beta.max() else ""
    if probe.has_gate():
        return f"β{value} includes\na coefficient of {KL_TEXT},\nwhich does not act through w"
    return f"β{value} multiplies\n{KL_TEXT}, which does\nnot act through w: no gate"


def number(value: float) -> str:
    """
    :param value: any number
    :return: it, in up to six digits
    """
    return f"{value:g}"


def _in_words(value: Any) -> str:
    if isinstance(value, Penalty):
        return title(value)
    if isinstance(value, ScheduledNumber):
        value = value.source
    if isinstance(value, (int, float)):
        return number(value)
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return str(value)

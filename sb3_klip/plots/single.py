"""The picture of one penalty."""

import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from sb3_klip.penalties import Penalty, make_penalty
from sb3_klip.plots import panels, words
from sb3_klip.plots.probe import Probe, early_and_late, ratio_limit
from sb3_klip.plots.style import house_style, new_figure

#: Letters in a line of the title, by the number of positions that are drawn.
TITLE_WIDTH = {1: 120, 2: 80}


def plot_penalty(
    penalty: str | Mapping[str, Any] | type[Penalty] | Penalty,
    clip_range: float = 0.2,
    *,
    penalty_kwargs: Mapping[str, Any] | None = None,
    position: float | None = None,
    progress_remaining: float = 1.0,
) -> Figure:
    """
    Draw a penalty: β over the plane of ratio and advantage, then, for the advantages +1 and -1 beside PPO-Clip,
    the gate and the surrogate over the ratio.

    A penalty that depends on the position in the episode is drawn at its beginning and late in it, with a
    plane for each, unless a position is given. The figure belongs to no window: save it with its ``savefig``.

    :param penalty: in any form that :func:`~sb3_klip.penalties.make_penalty` takes
    :param clip_range: half-width ε of the band, in ratio units: the algorithm's ``clip_range``
    :param penalty_kwargs: parameters of the shape
    :param position: steps since the episode began
    :param progress_remaining: training progress at which schedules are read, from 1 at the beginning to 0
    :return: the figure, with a panel each for β, the gate and the surrogate
    :raises ValueError: if the penalty cannot be made or returns NaN or a wrong shape, or a number is out of range
    """
    made = make_penalty(penalty, **(penalty_kwargs or {}))
    probe = Probe(made, clip_range, progress_remaining, position or 0.0)
    probes = early_and_late(probe) if position is None else [probe]
    limit = max(map(ratio_limit, probes))
    with house_style():
        figure = _draw(probes, limit)
        title = textwrap.fill(words.title(made), TITLE_WIDTH[len(probes)])
        figure.suptitle(f"{title}\n{words.conditions(probes)}", fontsize=10)
    return figure


def _draw(probes: list[Probe], limit: float) -> Figure:
    # One row; or two, with a plane for each position in the first
    figure = new_figure(11.4, 3.9) if len(probes) == 1 else new_figure(8.0, 7.2)
    axes = figure.subplots(len(probes), 3 if len(probes) == 1 else 2, squeeze=False).flatten()
    planes = list(axes[: len(probes)])
    panels.draw_beta(planes, probes, limit)
    for plane, probe in zip(planes, probes, strict=True):
        plane.set_title("coefficient β" + (f" at position {words.number(probe.position)}" if len(probes) > 1 else ""))
    gate, surrogate = axes[-2:]
    panels.draw_gate(gate, probes, limit)
    gate.set(title="gate g", xlabel=words.RATIO_LABEL, ylabel=words.GATE_LABEL)
    panels.draw_surrogate(surrogate, probes, limit)
    surrogate.set(title="surrogate", xlabel=words.RATIO_LABEL, ylabel="objective per sample (in units of Â)")
    figure.legend(handles=panels.legend_handles(probes), loc="outside lower center", ncols=5 if len(probes) == 1 else 4)
    return figure

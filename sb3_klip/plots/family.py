"""The picture of the whole family, for comparison."""

import math
import textwrap
from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_klip.penalties import Penalty, available_penalties, make_penalty
from sb3_klip.penalties.combinators import Part
from sb3_klip.penalties.registry import penalty_class
from sb3_klip.plots import panels, words
from sb3_klip.plots.probe import Probe, early_and_late, ratio_limit
from sb3_klip.plots.style import house_style, new_figure

#: What a combination of two penalties is made of, where the user does not say: two that are seen to differ.
EXAMPLE_PARTS = ("sigmoid", "rollback")
COLUMNS = 4
#: Letters in a line under a name, and the height of such a line in points.
CELL_WIDTH, CAPTION_HEIGHT = 40, 8.5


def plot_penalties(
    penalties: Iterable[str | Mapping[str, Any] | type[Penalty] | Penalty] | None = None,
    clip_range: float = 0.2,
    *,
    position: float | None = None,
    progress_remaining: float = 1.0,
) -> Figure:
    """
    Draw many penalties on one sheet: the gate of each over the ratio, for the advantages +1 and -1, with
    PPO-Clip's behind it. A penalty on the analytic KL has no gate, and its β is drawn instead. One that depends
    on the position in the episode is drawn at its beginning and late in it, unless a position is given.

    :param penalties: each in any form that :func:`~sb3_klip.penalties.make_penalty` takes; by default all that
        are registered, with their default parameters, combinations with parts that differ
    :param clip_range: half-width ε of the band, in ratio units: the algorithm's ``clip_range``
    :param position: steps since the episode began
    :param progress_remaining: training progress at which schedules are read, from 1 at the beginning to 0
    :return: the figure, with a panel for each penalty
    :raises ValueError: if a penalty cannot be made or returns NaN or a wrong shape, or a number is out of range
    """
    made = examples() if penalties is None else [make_penalty(penalty) for penalty in penalties]
    if not made:
        raise ValueError("there is no penalty to draw")
    columns = min(COLUMNS, len(made))
    rows = math.ceil(len(made) / columns)
    with house_style():
        figure = new_figure(max(2.4 * columns + 0.4, 3.6), 1.95 * rows + 0.7)
        cells = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, penalty in zip(cells, made, strict=False):
            probe = Probe(penalty, clip_range, progress_remaining, position or 0.0)
            _draw_cell(axes, early_and_late(probe) if position is None else [probe])
        for axes in cells[len(made) :]:
            axes.remove()
        handles = panels.legend_handles([Probe(made[0], clip_range)])
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles) if columns > 2 else 1 + columns)
        figure.supxlabel(words.RATIO_LABEL, fontsize=9)
        figure.supylabel(words.GATE_LABEL if rows > 1 else "gate g", fontsize=9)
    return figure


def examples() -> list[Penalty]:
    """
    :return: one penalty of each registered shape, in the order of their names
    """
    made = []
    for name in available_penalties():
        parts = [key for key, parameter in penalty_class(name).parameters().items() if isinstance(parameter, Part)]
        made.append(make_penalty(name, **dict(zip(parts, cycle(EXAMPLE_PARTS), strict=False))))
    return made


def _draw_cell(axes: Axes, probes: list[Probe]) -> None:
    probe = probes[0]
    captions = textwrap.wrap(", ".join(words.parameters_in_words(probe.penalty)), CELL_WIDTH, max_lines=2, placeholder=" …")
    if len(probes) > 1:
        captions.append(f"darker: position 0; lighter: {words.number(probes[1].position)}")
    limit = max(map(ratio_limit, probes))
    if probe.penalty.uses_kl and not probe.has_gate():
        panels.draw_coefficient(axes, probes, limit)
        axes.set_ylabel("β", labelpad=1)
        axes.text(0.5, 0.45, words.kl_note(probe), transform=axes.transAxes, ha="center", va="center", fontsize=7)
    else:
        panels.draw_gate(axes, probes, limit)
        # The same for all, to be compared; what is steeper leaves the cell
        axes.set(ylim=(-0.75, 1.6), yticks=[-0.5, 0.0, 0.5, 1.0, 1.5])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(
        probe.penalty.name.rpartition(".")[2], loc="left", fontweight="bold", pad=6 + CAPTION_HEIGHT * len(captions)
    )
    axes.annotate(
        "\n".join(captions), (0, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", va="bottom", fontsize=7
    )

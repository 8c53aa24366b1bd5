"""One panel of a picture each: β over the plane, the gate, the surrogate, a scalar coefficient."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MultipleLocator

from sb3_klip.penalties import make_penalty
from sb3_klip.plots import style
from sb3_klip.plots.probe import Probe, ratios
from sb3_klip.plots.words import ADVANTAGE_LABEL, RATIO_LABEL, number

#: From a penalty, ratios of shape ``(N,)`` and an advantage to what is drawn, shape ``(N,)``.
Curve = Callable[[Probe, np.ndarray, float], np.ndarray]

ADVANTAGES = (1.0, -1.0)
CURVE_POINTS = 1200
MAP_POINTS = 240
LARGEST_ADVANTAGE = 2.0


def draw_beta(planes: Sequence[Axes], probes: Sequence[Probe], limit: float) -> None:
    """
    β over the plane of ratio and advantage, with a colour bar: a plane for each position, on the same scale.

    :param planes: where to draw
    :param probes: the penalty at one position, or at an early and a late one
    :param limit: the largest ratio
    """
    ratio = ratios(limit, MAP_POINTS)
    # An even number of rows: the advantage 0, where a penalty may do anything, is none of them
    advantages = np.linspace(-LARGEST_ADVANTAGE, LARGEST_ADVANTAGE, MAP_POINTS)
    beta = np.stack([probe.beta(ratio[None, :], advantages[:, None]) for probe in probes])
    scale, beyond = _colour_scale(beta)
    outline = [withStroke(linewidth=3.0, foreground="white")]
    for axes, probe, values in zip(planes, probes, beta, strict=True):
        norm = CenteredNorm(halfrange=scale)
        image = axes.pcolormesh(ratio, advantages, values, norm=norm, cmap=style.COLOUR_MAP, rasterized=True)
        bar = axes.figure.colorbar(image, ax=axes, extend="both" if beyond else "neither", aspect=25, pad=0.02)
        bar.set_label("coefficient β (in units of Â)")
        for edge in probe.band():
            axes.axvline(edge, color="black", linewidth=0.8)
        axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
        for advantage in ADVANTAGES:
            colour, dashes = style.LINE_COLOURS[advantage][0], style.LINE_STYLES[advantage]
            axes.axhline(advantage, color=colour, linestyle=dashes, linewidth=1.4, path_effects=outline)
        axes.set(ylim=(-LARGEST_ADVANTAGE, LARGEST_ADVANTAGE), xlabel=RATIO_LABEL, ylabel=ADVANTAGE_LABEL)
        _ratio_axis(axes, limit)


def draw_gate(axes: Axes, probes: Sequence[Probe], limit: float) -> None:
    """
    The gate over the ratio, and PPO-Clip's behind it.

    :param axes: where to draw
    :param probes: the penalty at one position, or at an early and a late one
    :param limit: the largest ratio
    """
    _curves(axes, probes, limit, Probe.gate)
    axes.set_ylim(*_limits(axes, -1.0, 2.0, always=(0.0, 1.0)))


def draw_surrogate(axes: Axes, probes: Sequence[Probe], limit: float) -> None:
    """
    The objective over the ratio, and PPO-Clip's behind it.

    :param axes: where to draw
    :param probes: the penalty at one position, or at an early and a late one
    :param limit: the largest ratio
    """
    _curves(axes, probes, limit, Probe.surrogate)
    axes.set_ylim(*_limits(axes, -1.25 * limit, 1.25 * limit, always=(-limit, limit)))


def draw_coefficient(axes: Axes, probes: Sequence[Probe], limit: float) -> None:
    """
    β over the ratio, for a penalty that does not act through the ratio and so has no gate to draw.

    :param axes: where to draw
    :param probes: the penalty at one position, or at an early and a late one
    :param limit: the largest ratio
    """
    ratio = ratios(limit, CURVE_POINTS)
    for probe in probes:
        axes.plot(ratio, probe.beta(ratio, 1.0), color=style.COEFFICIENT_COLOUR)
    _ratio_axis(axes, limit)
    axes.set_ylim(*_limits(axes, -np.inf, np.inf, always=(0.0, 1.0)))


def legend_handles(probes: Sequence[Probe]) -> list[Line2D | Patch]:
    """
    :param probes: what the curves show, as given to the panels
    :return: one entry for each kind of line
    """
    handles: list[Line2D | Patch] = []
    for advantage in ADVANTAGES:
        for colour, probe in zip(style.LINE_COLOURS[advantage], probes, strict=False):
            label = _label(advantage, probe if len(probes) > 1 else None)
            handles.append(Line2D([], [], color=colour, linestyle=style.LINE_STYLES[advantage], label=label))
    clip = f"PPO-Clip, ε = {number(probes[0].clip_range)}"
    handles.append(Line2D([], [], color=style.REFERENCE_COLOUR, linestyle=style.REFERENCE_STYLE, label=clip))
    handles.append(Line2D([], [], color="black", linestyle=":", linewidth=0.8, label="w = 1"))
    return [*handles, Patch(color=style.BAND_COLOUR, label="band")]


def _curves(axes: Axes, probes: Sequence[Probe], limit: float, value: Curve) -> None:
    ratio = ratios(limit, CURVE_POINTS)
    low, high = probes[0].band()
    axes.axvspan(low, high, color=style.BAND_COLOUR, linewidth=0, zorder=0)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":", zorder=1)
    clip = Probe(make_penalty("hard"), probes[0].clip_range)
    for advantage in ADVANTAGES:
        for colour, probe in zip(style.LINE_COLOURS[advantage], probes, strict=False):
            label = _label(advantage, probe if len(probes) > 1 else None)
            dashes = style.LINE_STYLES[advantage]
            axes.plot(ratio, value(probe, ratio, advantage), color=colour, linestyle=dashes, label=label)
        reference = value(clip, ratio, advantage)
        axes.plot(ratio, reference, color=style.REFERENCE_COLOUR, linestyle=style.REFERENCE_STYLE, linewidth=1.2, zorder=1.5)
    _ratio_axis(axes, limit)


def _label(advantage: float, at: Probe | None) -> str:
    where = "" if at is None else f", position {number(at.position)}"
    return f"Â = {'+' if advantage > 0 else '−'}{abs(advantage):g}{where}"


def _ratio_axis(axes: Axes, limit: float) -> None:
    axes.set_xlim(0, limit)
    axes.xaxis.set_major_locator(MultipleLocator(0.5 if limit < 3 else 1.0))


def _colour_scale(beta: np.ndarray) -> tuple[float, bool]:
    size = np.abs(beta[np.isfinite(beta)])
    if not size.any():
        return 1.0, False
    if size.min() == size.max():
        # One colour all over, and not the darkest, on which nothing else can be seen
        return 2 * float(size.max()), False
    usual, largest = float(np.quantile(size, 0.98)), float(size.max())
    # A few extreme values would wash out all the rest: they share the last colour
    return (usual, True) if largest > 3 * usual > 0 else (largest, bool(np.isinf(beta).any()))


def _limits(axes: Axes, lowest: float, highest: float, always: tuple[float, float]) -> tuple[float, float]:
    heights = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    # The marker of w = 1 is a line as well, in units of its own
    drawn = np.concatenate([curve for curve in heights if len(curve) == CURVE_POINTS])
    drawn = drawn[np.isfinite(drawn)]
    low = max(min(always[0], drawn.min(initial=always[0])), lowest)
    high = min(max(always[1], drawn.max(initial=always[1])), highest)
    margin = 0.07 * (high - low)
    return low - margin, high + margin

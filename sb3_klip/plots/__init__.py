"""Pictures of the β_t family, as matplotlib figures."""

from sb3_klip.plots.family import plot_penalties
from sb3_klip.plots.save import save_figure
from sb3_klip.plots.single import plot_penalty

__all__ = ["plot_penalties", "plot_penalty", "save_figure"]

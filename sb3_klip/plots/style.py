"""The look of the pictures. Only here, and never through pyplot, is matplotlib set up."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

try:
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise
    raise ImportError('matplotlib is not installed; run: pip install "sb3-klip[plots]"') from None

#: Offset, and lengths of the dashes and the gaps, in line widths.
LineStyle = tuple[float, Sequence[float]]

# Okabe & Ito's palette, which readers with any kind of colour vision can tell apart. The sign of the advantage
# has a line style as well as a colour; a late position is the lighter colour of the pair.
LINE_COLOURS = {1.0: ("#0072B2", "#56B4E9"), -1.0: ("#D55E00", "#E69F00")}
LINE_STYLES: dict[float, LineStyle] = {1.0: (0, ()), -1.0: (0, (5, 1.2, 1.2, 1.2))}
COEFFICIENT_COLOUR = "#009E73"
REFERENCE_COLOUR = "#888888"
REFERENCE_STYLE: LineStyle = (0, (2.2, 1.6))
BAND_COLOUR = "#EFEFEF"
#: Diverging, orange against purple; both ends differ from each other for every kind of colour vision.
COLOUR_MAP = "PuOr_r"

_RC = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "butt",
    "lines.dash_capstyle": "butt",
    "savefig.facecolor": "white",
}


@contextmanager
def house_style() -> Iterator[None]:
    """
    Matplotlib's defaults and our changes to them, whatever the user has set; that is put back at the end.
    """
    with matplotlib.style.context(["default", _RC]):
        yield


def new_figure(width: float, height: float) -> Figure:
    """
    :param width: in inches
    :param height: in inches
    :return: an empty figure that belongs to no window, and arranges its panels itself
    """
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.05, wspace=0.04))

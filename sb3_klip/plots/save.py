"""Writing a figure to a file, whole or not at all."""

import os
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from sb3_klip.plots.style import house_style

SUFFIXES = (".png", ".svg", ".pdf")
#: Twice matplotlib's own resolution, in dots per inch: sharp on high-resolution screens and when scaled down.
RESOLUTION = 200


def check_destination(path: Path) -> None:
    """
    :param path: where a figure is to be written
    :raises ValueError: if its suffix is not one of :data:`SUFFIXES`, or it cannot be a file there
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} does not end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder")
    if path.is_dir():
        raise ValueError(f"{path} is a folder")


def save_figure(figure: Figure, path: Path | str, few_colours: bool = False) -> None:
    """
    Write a figure to a file beside its destination, and move it there when it is complete.

    :param figure: the figure
    :param path: where to; the suffix is one of :data:`SUFFIXES` and says the format
    :param few_colours: whether 256 colours are enough, as for curves without a colour map: a PNG is then a
        third of the size
    :raises ValueError: if the suffix says none, or the folder does not exist
    :raises OSError: if the file cannot be written
    """
    path = Path(path)
    check_destination(path)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with house_style():
            figure.savefig(unfinished, dpi=RESOLUTION)
        if few_colours and path.suffix.lower() == ".png":
            with Image.open(unfinished) as image:
                reduced = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            reduced.save(unfinished, optimize=True)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)

"""``sb3-klip plot``: pictures of one penalty or of many, written to a file."""

import argparse
from pathlib import Path

from sb3_klip.commands.command import Command, CommandParser, SentenceParser
from sb3_klip.commands.literals import key_value
from sb3_klip.errors import InputError
from sb3_klip.penalties import make_penalty
from sb3_klip.plots import plot_penalties, plot_penalty, save_figure
from sb3_klip.plots.save import SUFFIXES, check_destination
from sb3_klip.plots.style import Figure


def run(command: Command, arguments: list[str]) -> int:
    """
    :param command: the command
    :param arguments: its command line
    :return: exit code, 0
    :raises InputError: if the penalty cannot be made or drawn, or the file cannot be written
    """
    options = _parser(command).parse_args(arguments)
    try:
        path = _draw_one(options) if options.what == "penalty" else _draw_many(options)
    except ValueError as error:
        raise InputError(str(error)) from error
    print(path)
    return 0


def _draw_one(options: argparse.Namespace) -> Path:
    try:
        penalty = make_penalty(options.name, **dict(options.kwargs))
    except TypeError as error:  # a class of the user's with a constructor of its own
        raise InputError(f"the penalty {options.name!r} cannot be made with these arguments: {error}") from error
    path = options.output or Path(f"{penalty.name.rpartition('.')[2]}.png")
    check_destination(path)
    figure = plot_penalty(
        penalty, options.clip_range, position=options.position, progress_remaining=options.progress_remaining
    )
    _write(figure, path)
    return path


def _draw_many(options: argparse.Namespace) -> Path:
    path = options.output or Path("penalties.png")
    check_destination(path)
    figure = plot_penalties(
        options.names or None, options.clip_range, position=options.position, progress_remaining=options.progress_remaining
    )
    _write(figure, path, few_colours=True)
    return path


def _write(figure: Figure, path: Path, few_colours: bool = False) -> None:
    try:
        save_figure(figure, path, few_colours)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _parser(command: Command) -> CommandParser:
    common = SentenceParser(add_help=False)
    common.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=f"file to write, {', '.join(SUFFIXES)} (default: the name, .png)"
    )
    common.add_argument("--clip-range", type=float, default=0.2, help="the algorithm's clip range ε (default: %(default)s)")
    common.add_argument(
        "--position", type=float, help="steps since the episode began (default: both early and late, if it matters)"
    )
    common.add_argument(
        "--progress",
        type=float,
        default=1.0,
        dest="progress_remaining",
        help="progress remaining, from 1 at the beginning of training to 0, for schedules (default: %(default)s)",
    )
    parser = CommandParser(command)
    kinds = parser.add_subparsers(dest="what", required=True, metavar="{penalty,penalties}", parser_class=SentenceParser)
    one = kinds.add_parser("penalty", parents=[common], help="one penalty: β, gate and surrogate")
    one.add_argument("name", help="name of the penalty, or the dotted path of a class of your own, my_module.MyGate")
    one.add_argument("--kwargs", nargs="+", type=key_value, default=[], metavar="KEY:VALUE", help="parameters of the shape")
    many = kinds.add_parser("penalties", parents=[common], help="many penalties on one sheet: their gates")
    many.add_argument("names", nargs="*", help="names or dotted paths of the penalties (default: all that are registered)")
    return parser

"""``sb3-klip verify``: prints what :func:`sb3_klip.verify.verify` finds."""

import argparse

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sb3_klip.commands.command import Command, CommandParser
from sb3_klip.verify import RolloutComparison, verify
from sb3_klip.zoo import ALGORITHMS
from sb3_klip.zoo.store_dict import CheckedStoreDict


def run(command: Command, arguments: list[str]) -> int:
    """
    :param command: the command
    :param arguments: its command line
    :return: exit code: 0 if every parameter was equal after every update, 1 if not
    """
    options = _parser(command).parse_args(arguments)
    progress = Progress(console=Console(stderr=True), transient=True, disable=not Console(stderr=True).is_terminal)
    with progress:
        task = progress.add_task("training both", total=2 * options.n_timesteps)
        comparisons = verify(
            options.env,
            options.n_timesteps,
            seed=options.seed,
            algo=options.algo,
            hyperparams=options.hyperparams,
            config=options.conf_file,
            on_step=lambda steps: progress.advance(task, steps),
        )

    pair = ALGORITHMS[options.algo]
    names = f"{pair.algorithm.__name__} and {pair.reference.__name__}"
    console = Console()
    console.print(_table(comparisons, title=f"{names} on {options.env}, seed {options.seed}"))
    different = [row.rollout for row in comparisons if not row.equal]
    if different:
        console.print(f"[red]{names} differ, first after rollout {different[0]} of {len(comparisons)}.", soft_wrap=True)
        return 1
    console.print(f"[green]{names} are equal to the last bit after each of {len(comparisons)} rollouts.", soft_wrap=True)
    return 0


def _parser(command: Command) -> CommandParser:
    parser = CommandParser(command)
    parser.add_argument("--algo", default="klip_ppo", choices=list(ALGORITHMS), help="algorithm (default: %(default)s)")
    parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument(
        "-n", "--n-timesteps", type=_positive, default=10000, help="timesteps of each training (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random generator seed of both (default: %(default)s)")
    parser.add_argument(
        "-params",
        "--hyperparams",
        nargs="+",
        action=CheckedStoreDict,
        help="overwrite hyperparameters (e.g. batch_size:50 learning_rate:0.01)",
    )
    parser.add_argument("-conf", "--conf-file", help="hyperparameter file, if not the algorithm's own")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _table(comparisons: list[RolloutComparison], title: str) -> Table:
    table = Table("rollout", "timesteps", "largest difference of a parameter", "kill fraction", title=title)
    for row in comparisons:
        style = None if row.equal else "red"
        table.add_row(f"{row.rollout}", f"{row.timesteps}", f"{row.max_difference:g}", f"{row.frac_kill:.4f}", style=style)
    return table

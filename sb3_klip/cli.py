"""The command line ``sb3-klip``: a table of subcommands, and how they end."""

import argparse
import os
import sys
from collections.abc import Sequence

from sb3_klip import __version__
from sb3_klip.commands.command import Command, SentenceParser
from sb3_klip.errors import InputError, did_you_mean, explain

#: Exit codes, besides those that a command itself returns.
INPUT_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

COMMANDS = (
    Command(
        "train",
        "sb3_klip.commands.zoo_scripts:run",
        "Train an agent with the hyperparameters of its environment",
        "This is RL Zoo's own script; the default of --algo is klip_ppo.",
        (
            "sb3-klip train --env CartPole-v1",
            "sb3-klip train --env CartPole-v1 --seed 1 -n 50000 --progress --eval-freq 10000",
            "sb3-klip train --env Pendulum-v1 -params batch_size:50 penalty:\"'none'\"",
            "sb3-klip train --algo ppo --env CartPole-v1",
        ),
    ),
    Command(
        "enjoy",
        "sb3_klip.commands.zoo_scripts:run",
        "Replay a trained agent",
        "This is RL Zoo's own script; the default of --algo is klip_ppo, that of --folder is logs.",
        (
            "sb3-klip enjoy --env CartPole-v1",
            "sb3-klip enjoy --env CartPole-v1 --no-render -n 5000 --load-best",
        ),
    ),
    Command(
        "plot_train",
        "sb3_klip.commands.zoo_scripts:run",
        "Plot the training curves of some runs",
        "This is RL Zoo's own script; the default of --algo is klip_ppo, that of --exp-folder is logs.",
        ("sb3-klip plot_train -e CartPole-v1 -y reward -w 100",),
    ),
    Command(
        "all_plots",
        "sb3_klip.commands.zoo_scripts:run",
        "Compare the evaluations of several algorithms and runs",
        "This is RL Zoo's own script; the default of --algos is klip_ppo, that of --exp-folders is logs.",
        ("sb3-klip all_plots -a klip_ppo ppo -e CartPole Pendulum -o results",),
    ),
    Command(
        "plot_from_file",
        "sb3_klip.commands.zoo_scripts:run",
        "Draw the results that all_plots wrote to a file",
        "This is RL Zoo's own script.",
        ("sb3-klip plot_from_file -i results.pkl -l KLip PPO",),
    ),
    Command(
        "verify",
        "sb3_klip.commands.verify:run",
        "Check that the hard gate is PPO to the last bit",
        "Trains the algorithm and its Stable-Baselines3 counterpart with the same seed and hyperparameters, and "
        "compares every parameter after every update. The exit code is 0 if all are equal to the last bit, 1 if not.",
        (
            "sb3-klip verify --env CartPole-v1 -n 10000",
            "sb3-klip verify --env Pendulum-v1 -n 20000 --seed 3 -params batch_size:50",
        ),
    ),
    Command(
        "plot",
        "sb3_klip.commands.plot:run",
        "Draw one shape of the penalty, or all of them",
        "Writes a PNG, SVG or PDF file, as the suffix of -o says, and prints where.",
        (
            "sb3-klip plot penalty sigmoid --kwargs softness:0.05 -o sigmoid.png",
            'sb3-klip plot penalty asymmetric --kwargs upper:sigmoid "lower:{name: rollback, alpha: 0.5}"',
            "sb3-klip plot penalty sigmoid --kwargs softness:lin_0.1 --progress 0.5",
            "sb3-klip plot penalty my_module.MyGate",
            "sb3-klip plot penalties -o penalties.png",
        ),
    ),
)

_EPILOG = """commands:
{commands}

examples:
  sb3-klip train --env CartPole-v1            train, evaluate, save
  sb3-klip enjoy --env CartPole-v1            watch what was trained
  sb3-klip verify --env CartPole-v1 -n 10000  train PPO too, and compare every parameter

"sb3-klip COMMAND --help" explains a command.
Exit codes: 0 all is well, 1 verify found a difference, 2 something given cannot be used
(SB3_KLIP_DEBUG=1 in the environment shows where), 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one command line.

    A mistake in what the user gave is one sentence on stderr; any other error keeps its traceback. With
    ``SB3_KLIP_DEBUG=1`` in the environment, a mistake keeps it too.

    :param arguments: command line after ``sb3-klip``, that of the process if not given
    :return: exit code: 2 for a mistake of the user's, 130 when interrupted, otherwise the command's own
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    prog = "sb3-klip"
    # A penalty or an environment of the user's may be a module in the current folder, as it may for "python -m";
    # last, so that no file there hides an installed package
    here = os.getcwd()
    sys.path.append(here)
    try:
        command = _command(words[:1])
        prog = f"{prog} {command.name}"
        return command.run(words[1:])
    except SystemExit as stop:
        if stop.code:
            raise
        return 0  # argparse has printed a help text
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        sentence = explain(error)
        if sentence is None or os.environ.get("SB3_KLIP_DEBUG"):
            raise
        print(f"{prog}: {sentence}", file=sys.stderr)
        return INPUT_ERROR
    finally:
        sys.path.remove(here)


def _command(words: list[str]) -> Command:
    commands = {command.name: command for command in COMMANDS}
    width = max(map(len, commands))
    parser = SentenceParser(
        prog="sb3-klip",
        usage="sb3-klip COMMAND [options]",
        description="PPO with a KL penalty whose coefficient varies per sample, on Stable-Baselines3 and its RL Zoo.",
        epilog=_EPILOG.format(commands="\n".join(f"  {name:{width}}  {commands[name].summary}" for name in commands)),
    )
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"sb3-klip {__version__}")
    name = parser.parse_args(words).command
    if name not in commands:
        advice = did_you_mean(name, commands, otherwise=f"the commands are {', '.join(commands)}")
        raise InputError(f"unknown command {name!r}; {advice}")
    return commands[name]

"""RL Zoo's own scripts as subcommands: the options are its own, the algorithms ours too, mistakes are explained."""

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import StoreDict, get_model_path
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_klip.commands.command import Command, CommandParser
from sb3_klip.errors import InputError
from sb3_klip.zoo import ALGORITHMS, register
from sb3_klip.zoo.checks import check_environment
from sb3_klip.zoo.store_dict import CheckedStoreDict


class Script(NamedTuple):
    """
    One script of RL Zoo.

    :param target: ``"module:function"``, imported when the script runs: each needs other packages
    :param defaults: options that the user's own come after, and so override
    :param check: raises :class:`InputError` for parsed options with which the script cannot work
    :param context: entered with the script's module while it runs
    """

    target: str
    defaults: tuple[str, ...]
    check: Callable[[argparse.Namespace], None]
    context: Callable[[ModuleType], AbstractContextManager] = contextlib.nullcontext


class ScriptParser(CommandParser):
    """
    Stands in for :class:`argparse.ArgumentParser` while a script makes its parser and parses with it.

    :param command: the command that the script is
    :param check: looks at the parsed options before the script does
    """

    def __init__(self, command: Command, check: Callable[[argparse.Namespace], None]):
        super().__init__(command)
        self.register("action", StoreDict, CheckedStoreDict)
        self.check = check

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:  # type: ignore[override]
        namespace = super().parse_args(*args, **kwargs)
        self.check(namespace)
        return namespace


def run(command: Command, arguments: list[str]) -> int:
    """
    :param command: the command, named as one of :data:`SCRIPTS`
    :param arguments: its command line
    :return: exit code
    """
    script = SCRIPTS[command.name]
    register()
    module_name, _, function = script.target.partition(":")
    module = importlib.import_module(module_name)
    with _script_context(command, script, arguments), script.context(module):
        getattr(module, function)()
    return 0


@contextlib.contextmanager
def _script_context(command: Command, script: Script, arguments: list[str]) -> Iterator[None]:
    # The scripts read sys.argv and make their parsers themselves, so both are exchanged around them
    argv, parser_class = sys.argv, argparse.ArgumentParser

    def make_parser(*_: Any, **__: Any) -> ScriptParser:
        argparse.ArgumentParser = parser_class  # type: ignore[misc]
        return ScriptParser(command, script.check)

    sys.argv = [f"sb3-klip {command.name}", *script.defaults, *arguments]
    argparse.ArgumentParser = make_parser  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        sys.argv, argparse.ArgumentParser = argv, parser_class  # type: ignore[misc]


@contextlib.contextmanager
def _predicting(enjoy: ModuleType) -> Iterator[None]:
    # The script calls `predict` with an observation alone; it looks up in its module how to make the environments
    # and load the model, so there the two are brought together.
    envs: list[VecEnv] = []
    algos, create_test_env = enjoy.ALGOS, enjoy.create_test_env

    def create(*args: Any, **kwargs: Any) -> VecEnv:
        envs.append(create_test_env(*args, **kwargs))
        return envs[-1]

    def loader(name: str) -> Any:
        def load(*args: Any, **kwargs: Any) -> BaseAlgorithm:
            model = algos[name].load(*args, **kwargs)
            predict, predict_kwargs = model.predict, ALGORITHMS[name].predict_kwargs
            model.predict = lambda *args, **kwargs: predict(*args, **kwargs, **predict_kwargs(envs[-1]))
            return model

        return SimpleNamespace(load=load)

    enjoy.ALGOS = {**algos, **{name: loader(name) for name in ALGORITHMS}}  # type: ignore[attr-defined]
    enjoy.create_test_env = create  # type: ignore[attr-defined]
    try:
        yield
    finally:
        enjoy.ALGOS, enjoy.create_test_env = algos, create_test_env  # type: ignore[attr-defined]


def _check_train(options: argparse.Namespace) -> None:
    check_environment(options.env, options.gym_packages)
    agent = options.trained_agent
    if agent and not (agent.endswith(".zip") and os.path.isfile(agent)):
        raise InputError(f"--trained-agent must be the .zip file of a saved model, and {agent!r} is not")


def _check_enjoy(options: argparse.Namespace) -> None:
    env_name: EnvironmentName = options.env
    check_environment(env_name.gym_id, options.gym_packages)
    # RL Zoo downloads what is missing in the folder of its own agents
    if "rl-trained-agents" in options.folder:
        return
    which = (options.load_best, options.load_checkpoint, options.load_last_checkpoint)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            get_model_path(options.exp_id, options.folder, options.algo, env_name, *which)
    except (AssertionError, ValueError) as error:
        raise InputError(
            f"{error}; give the folder of the logs with -f, or train first: "
            f"sb3-klip train --algo {options.algo} --env {env_name.gym_id} -f {options.folder}"
        ) from error


def _check_plot_train(options: argparse.Namespace) -> None:
    _check_folder(os.path.join(options.exp_folder, options.algo))


def _check_all_plots(options: argparse.Namespace) -> None:
    for folder in options.exp_folders:
        _check_folder(folder)


def _check_plot_from_file(options: argparse.Namespace) -> None:
    if options.input is None:
        raise InputError("give the file that sb3-klip all_plots -o wrote with -i")
    file = options.input.removesuffix(".pkl") + ".pkl"
    if not os.path.isfile(file):
        raise InputError(f"there is no file {file}; sb3-klip all_plots -o writes one")


def _check_folder(folder: str) -> None:
    if not os.path.isdir(folder):
        raise InputError(f"there is no folder {folder}; give the folder of the logs with -f")


SCRIPTS = {
    "train": Script("rl_zoo3.train:train", ("--algo", "klip_ppo"), _check_train),
    "enjoy": Script("rl_zoo3.enjoy:enjoy", ("--algo", "klip_ppo", "-f", "logs"), _check_enjoy, _predicting),
    "plot_train": Script("rl_zoo3.plots.plot_train:plot_train", ("-a", "klip_ppo", "-f", "logs"), _check_plot_train),
    "all_plots": Script("rl_zoo3.plots.all_plots:all_plots", ("-a", "klip_ppo", "-f", "logs"), _check_all_plots),
    "plot_from_file": Script("rl_zoo3.plots.plot_from_file:plot_from_file", (), _check_plot_from_file),
}

"""Checks what the user asked for before anything is made or written, in sentences."""

import importlib
import importlib.util
import inspect
import os
import re
import typing
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

import gymnasium as gym
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_klip.errors import InputError, did_you_mean
from sb3_klip.penalties import make_penalty

#: What a hyperparameter file may hold besides the arguments of the algorithm.
ZOO_KEYS = {
    "n_timesteps": float,
    "n_envs": int,
    "frame_stack": int,
    "normalize": Any,
    "env_wrapper": Any,
    "vec_env_wrapper": Any,
    "env_kwargs": Any,
    "monitor_kwargs": Any,
    "callback": Any,
}
#: Arguments of the algorithm that RL Zoo gives itself, from an option of its command line.
OPTIONS = ("env", "seed", "device", "tensorboard_log", "verbose")

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "None"}


def check_environment(env_id: str, gym_packages: Sequence[str] = ()) -> None:
    """
    :param env_id: id of an environment
    :param gym_packages: packages to import first, which register environments
    :raises InputError: if there is no such package or environment
    """
    for package in gym_packages:
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            raise InputError(f"--gym-packages: there is no Python package {package!r}")
        importlib.import_module(package)
    if env_id not in gym.registry:
        advice = did_you_mean(env_id, gym.registry, otherwise="no id is like it")
        raise InputError(
            f"unknown environment {env_id!r}; {advice} (one of a package of its own needs --gym-packages PACKAGE)"
        )


def check_config(path: str, env_id: str) -> None:
    """
    :param path: hyperparameter file (YAML or Python) or module
    :param env_id: id of the environment whose entry will be read
    :raises InputError: if the file cannot be read or has no entry for the environment
    """
    if not path.endswith((".yml", ".yaml")):
        if not os.path.isfile(path) if path.endswith(".py") else not _is_module(path):
            raise InputError(f"there are no hyperparameters at {path!r}: neither a .yml, .yaml or .py file nor a module")
        return
    try:
        with open(path) as file:
            entries = yaml.safe_load(file)
    except OSError as error:
        raise InputError(f"cannot read the hyperparameters in {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(entries, Mapping):
        raise InputError(f"{path} must have one entry per environment, each with hyperparameters as key: value")
    key = env_id if env_id in entries else "atari" if ExperimentManager.is_atari(env_id) else "default"
    if not isinstance(entries.get(key), Mapping):
        raise InputError(f"{path} has no hyperparameters for {env_id}: write them as key: value under {env_id} or {key}")


def check_hyperparams(hyperparams: Mapping[str, Any], algorithm: type[BaseAlgorithm]) -> None:
    """
    Check names, types and the penalty; ranges and shapes are the algorithm's own business.

    :param hyperparams: hyperparameters of one environment, as the user wrote them
    :param algorithm: the class that they are for
    :raises InputError: if a key is unknown or missing, or a value is of the wrong type, or there is no such penalty
    """
    arguments = inspect.signature(algorithm).parameters
    own = [key for key in arguments if key not in OPTIONS and not key.startswith("_")]
    for key, value in hyperparams.items():
        if key in OPTIONS:
            raise InputError(f"{key} is not a hyperparameter; use the option --{key.replace('_', '-')}")
        if key not in own and key not in ZOO_KEYS:
            advice = did_you_mean(key, [*own, *ZOO_KEYS], otherwise=f"known are {', '.join([*own, *ZOO_KEYS])}")
            raise InputError(f"unknown hyperparameter {key!r} for {algorithm.__name__}; {advice}")
        _check_type(key, value, ZOO_KEYS[key] if key in ZOO_KEYS else arguments[key].annotation)
    for key in ("policy", "n_timesteps"):
        if key not in hyperparams:
            raise InputError(f"the hyperparameter {key} is missing")
    policy = hyperparams["policy"]
    if "." not in str(policy) and policy not in algorithm.policy_aliases:
        raise InputError(
            f"unknown policy {policy!r} for {algorithm.__name__}; known are {', '.join(algorithm.policy_aliases)}, "
            "and package.module.Class for one of your own"
        )
    _check_penalty(hyperparams.get("penalty", arguments["penalty"].default), hyperparams.get("penalty_kwargs"))


def _check_type(key: str, value: Any, hint: Any) -> None:
    try:
        # Numbers and strings such as lin_0.1, in the keys that have a schedule
        ExperimentManager._preprocess_schedules({key: value})
    except ValueError:
        raise InputError(f'{key} must be a number, or "lin_<number>" for a linear decrease to 0, got {_show(value)}') from None
    kinds = typing.get_args(hint) or (hint,)
    # What else an argument may be (a class, a schedule, a dict) is RL Zoo's and the algorithm's to judge
    if not set(kinds) <= set(_KINDS):
        return
    if type(value) in kinds or (type(value) is int and float in kinds):
        return
    raise InputError(f"{key} must be {' or '.join(_KINDS[kind] for kind in kinds)}, got {_show(value)}")


def _check_penalty(penalty: Any, penalty_kwargs: Any) -> None:
    parameters = {} if penalty_kwargs is None else penalty_kwargs
    if not isinstance(parameters, Mapping) or not all(isinstance(key, str) for key in parameters):
        raise InputError(f'penalty_kwargs must be a dict such as {{"softness": 0.05}}, got {penalty_kwargs!r}')
    try:
        make_penalty(penalty, **parameters)
    except ValueError as error:
        raise InputError(str(error)) from error


def _show(value: Any) -> str:
    is_exponential = isinstance(value, str) and re.fullmatch(r"[-+\d.]+e[-+\d]+", value, re.IGNORECASE)
    return f"{value!r} (YAML takes 1e-4 for text: write 1.0e-4)" if is_exponential else repr(value)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False

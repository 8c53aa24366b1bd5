"""
Optuna's search over shapes, conditional: a shape, and the parameters of that shape alone.

A trial holds the shape as ``penalty`` and its parameters as ``<shape>.<parameter>``, so the same parameter of
two shapes is two dimensions, and a trial can be turned into hyperparameters without knowing the command line.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import optuna

from sb3_klip.penalties import make_penalty
from sb3_klip.zoo.algorithms import Converter, Sampler

PENALTY = "penalty"
#: Attribute of a trial: what the user fixed of the penalty, see :func:`fix_penalty`.
FIXED_PENALTY = "fixed_penalty"


class Range(NamedTuple):
    """
    :param low: smallest value to try
    :param high: largest value to try
    :param log: whether to search its logarithm
    """

    low: float
    high: float
    log: bool = False


#: The shapes to choose from, and where to search their parameters. A shape that is not here can be fixed by the
#: user, and all else tuned. Missing on purpose are "none", which is no penalty, and the combinators.
SEARCH_SPACE: dict[str, dict[str, Range]] = {
    "hard": {},
    "linear_ramp": {"softness": Range(0.005, 0.5, log=True)},
    "sigmoid": {"softness": Range(0.005, 0.5, log=True)},
    "soft_min": {"softness": Range(0.005, 0.5, log=True)},
    "tanh": {"alpha": Range(0.01, 1.0, log=True)},
    "leaky": {"alpha": Range(0.01, 0.5)},
    "rollback": {"alpha": Range(0.01, 1.0, log=True)},
    "spo": {},
    "dual_clip": {"dual_clip": Range(1.5, 10.0, log=True)},
    "clip_higher": {"clip_range_high": Range(0.1, 0.5)},
    "cispo": {"clip_range_low": Range(0.1, 1.0), "clip_range_high": Range(0.1, 5.0, log=True)},
    "sapo": {"tau_pos": Range(0.5, 5.0, log=True), "tau_neg": Range(0.5, 5.0, log=True)},
    "gppo": {},
    "pspo": {"alpha": Range(0.01, 0.5)},
    "kl_fixed": {"beta": Range(0.01, 10.0, log=True)},
    "kl_adaptive": {"target": Range(0.001, 0.1, log=True)},
}


def fix_penalty(trial: optuna.Trial, hyperparams: Mapping[str, Any]) -> None:
    """
    Tell the sampler, which RL Zoo does not show the hyperparameters, what the user fixed of the penalty.

    :param trial: the trial that is about to be sampled
    :param hyperparams: hyperparameters from the file and the command line
    """
    penalty = hyperparams.get(PENALTY, {})
    if isinstance(penalty, str):
        spec = {"name": penalty}
    elif isinstance(penalty, Mapping):
        spec = dict(penalty)
    else:
        spec = make_penalty(penalty).spec()
    trial.set_user_attr(FIXED_PENALTY, {**spec, **(hyperparams.get("penalty_kwargs") or {})})


def sample_penalty(trial: optuna.Trial) -> dict[str, Any]:
    """
    Choose a shape, unless the user fixed it, and then those of its parameters that the user did not fix.

    What is fixed becomes part of the trial too, as a choice of one, so that the trial alone can be replayed.

    :param trial: the trial
    :return: ``penalty`` and ``penalty_kwargs``
    """
    fixed = dict(trial.user_attrs.get(FIXED_PENALTY, {}))
    shape = fixed.pop("name", None)
    name = trial.suggest_categorical(PENALTY, list(SEARCH_SPACE) if shape is None else [shape])
    parameters: dict[str, Any] = {key: trial.suggest_categorical(f"{name}.{key}", [value]) for key, value in fixed.items()}
    for key, (low, high, log) in SEARCH_SPACE.get(name, {}).items():
        if key not in fixed:
            parameters[key] = trial.suggest_float(f"{name}.{key}", low, high, log=log)
    return {PENALTY: name, "penalty_kwargs": parameters}


def penalty_sampler(sampler: Sampler) -> Sampler:
    """
    :param sampler: sampler of all else
    :return: a sampler of that and of the penalty
    """

    def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        return {**sampler(trial, n_actions, n_envs, additional_args), **sample_penalty(trial)}

    return sample


def penalty_converter(converter: Converter) -> Converter:
    """
    :param converter: converter of all else
    :return: a converter of that and of the penalty
    """

    def convert(sampled_params: dict[str, Any]) -> dict[str, Any]:
        others = {key: value for key, value in sampled_params.items() if key != PENALTY and "." not in key}
        parameters = {key.rpartition(".")[2]: value for key, value in sampled_params.items() if "." in key}
        return {**converter(others), PENALTY: sampled_params[PENALTY], "penalty_kwargs": parameters}

    return convert

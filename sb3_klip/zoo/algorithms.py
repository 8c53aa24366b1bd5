"""Our algorithms, as the RL Zoo sees them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from rl_zoo3.callbacks import TrialEvalCallback
from rl_zoo3.hyperparams_opt import convert_onpolicy_params, sample_ppo_lstm_params, sample_ppo_params
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_klip import KLipPPO, MaskableKLipPPO, RecurrentKLipPPO

Sampler = Callable[[optuna.Trial, int, int, dict[str, Any]], dict[str, Any]]
Converter = Callable[[dict[str, Any]], dict[str, Any]]


class ZooAlgorithm(NamedTuple):
    """
    What the RL Zoo needs to know of one algorithm. Its hyperparameter file is ``hyperparams/<name>.yml``.

    :param algorithm: the class
    :param reference: the class that it equals to the last bit with the hard gate
    :param sampler: Optuna sampler of the reference's hyperparameters; the shape's own are added to them
    :param converter: from what the sampler asked Optuna for to hyperparameters
    :param eval_callback: evaluates the model while it trains
    :param trial_eval_callback: the same in a trial of Optuna's
    :param predict_kwargs: what ``predict`` must be given besides the observation, from the environments it acts in
    """

    algorithm: type[OnPolicyAlgorithm]
    reference: type[OnPolicyAlgorithm]
    sampler: Sampler
    converter: Converter
    eval_callback: type[EvalCallback] = EvalCallback
    trial_eval_callback: type[TrialEvalCallback] = TrialEvalCallback
    predict_kwargs: Callable[[VecEnv], dict[str, Any]] = lambda env: {}


class MaskableTrialEvalCallback(TrialEvalCallback, MaskableEvalCallback):
    """RL Zoo's callback for a trial, with invalid actions masked."""


ALGORITHMS = {
    "klip_ppo": ZooAlgorithm(KLipPPO, PPO, sample_ppo_params, convert_onpolicy_params),
    "maskable_klip_ppo": ZooAlgorithm(
        MaskableKLipPPO,
        MaskablePPO,
        sample_ppo_params,
        convert_onpolicy_params,
        eval_callback=MaskableEvalCallback,
        trial_eval_callback=MaskableTrialEvalCallback,
        predict_kwargs=lambda env: {"action_masks": get_action_masks(env)},
    ),
    "klip_ppo_lstm": ZooAlgorithm(RecurrentKLipPPO, RecurrentPPO, sample_ppo_lstm_params, convert_onpolicy_params),
}


def hyperparams_folder() -> Path:
    """
    :return: the folder of the hyperparameter files, inside the installed package or in the source checkout
    """
    package = Path(__file__).parent.parent
    installed = package / "hyperparams"
    return installed if installed.is_dir() else package.parent / "hyperparams"


def default_config(name: str) -> Path:
    """
    :param name: one of :data:`ALGORITHMS`
    :return: its hyperparameter file
    """
    return hyperparams_folder() / f"{name}.yml"

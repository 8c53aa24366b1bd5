"""Makes our algorithms known to the RL Zoo."""

import rl_zoo3.train
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

from sb3_klip.zoo.algorithms import ALGORITHMS
from sb3_klip.zoo.environments import register_environments
from sb3_klip.zoo.manager import KLipExperimentManager
from sb3_klip.zoo.search import penalty_converter, penalty_sampler


def register() -> None:
    """
    Add our algorithms to ``rl_zoo3``: their classes, samplers and hyperparameter files; and to Gymnasium the
    environments with invalid actions. Doing it again does nothing.

    After it RL Zoo's own scripts, for example ``rl_zoo3.train.train()``, know them.
    """
    for name, entry in ALGORITHMS.items():
        rl_zoo3.ALGOS[name] = entry.algorithm
        HYPERPARAMS_SAMPLER[name] = penalty_sampler(entry.sampler)  # type: ignore[assignment]
        HYPERPARAMS_CONVERTER[name] = penalty_converter(entry.converter)  # type: ignore[assignment]
    register_environments()
    # The manager looks for hyperparameter files in its own package and nowhere else, so the script gets ours
    rl_zoo3.train.ExperimentManager = KLipExperimentManager  # type: ignore[misc]

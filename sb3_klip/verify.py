"""
Trains an algorithm of ours and its Stable-Baselines3 counterpart alike, and compares every parameter.

Both draw from the same global random number generators, so they train one after the other: the first leaves its
parameters after each update in a temporary folder, the second is compared with them.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed

from sb3_klip.zoo import ALGORITHMS, KLipExperimentManager, register
from sb3_klip.zoo.checks import check_environment


class RolloutComparison(NamedTuple):
    """
    The two policies after one update.

    :param rollout: number of the rollout, from 1
    :param timesteps: environment steps so far
    :param max_difference: largest absolute difference of any two parameters; NaN if any parameter is NaN
    :param equal: whether all parameters are equal to the last bit
    :param frac_kill: share of the samples of this update in the kill set, by our algorithm
    """

    rollout: int
    timesteps: int
    max_difference: float
    equal: bool
    frac_kill: float


class AfterUpdate(BaseCallback):
    """
    Calls a function after each update. SB3 has no such event: it is the beginning of the next rollout, or the end
    of the training.

    :param after_update: called with the number of the rollout, from 1
    :param on_step: called with the number of environment steps since the last call
    """

    def __init__(self, after_update: Callable[[int], None], on_step: Callable[[int], None]):
        super().__init__()
        self.after_update = after_update
        self.on_step_done = on_step
        self.rollouts = 0
        self.update_pending = False

    def _on_step(self) -> bool:
        self.on_step_done(self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        self.rollouts += 1
        self.update_pending = True

    def _on_rollout_start(self) -> None:
        if self.update_pending:
            self.after_update(self.rollouts)
            self.update_pending = False

    def _on_training_end(self) -> None:
        self._on_rollout_start()


def verify(
    env_id: str,
    n_timesteps: int,
    seed: int = 0,
    algo: str = "klip_ppo",
    hyperparams: dict[str, Any] | None = None,
    config: str | None = None,
    on_step: Callable[[int], None] = lambda _: None,
) -> list[RolloutComparison]:
    """
    Train an algorithm and its counterpart on one environment, as ``train`` would but without writing any log.

    :param env_id: id of the environment
    :param n_timesteps: environment steps of each of the two trainings
    :param seed: seed of both
    :param algo: one of :data:`sb3_klip.zoo.ALGORITHMS`
    :param hyperparams: hyperparameters that override those of the environment
    :param config: hyperparameter file, the algorithm's own if not given
    :param on_step: called with the number of environment steps since the last call, for a progress bar that
        ends at ``2 * n_timesteps``
    :return: one comparison per rollout
    :raises InputError: if there is no such environment, or the hyperparameters cannot be used
    """
    register()
    check_environment(env_id)
    entry = ALGORITHMS[algo]

    def make_model(algorithm: type[BaseAlgorithm]) -> BaseAlgorithm:
        set_random_seed(seed)
        manager = KLipExperimentManager(
            argparse.Namespace(),
            algo,
            env_id,
            log_folder="",
            n_timesteps=n_timesteps,
            seed=seed,
            verbose=0,
            # A copy, because a policy may change the dicts that it is given
            hyperparams=copy.deepcopy(hyperparams),
            config=config,
        )
        with redirect_stdout(StringIO()):
            return manager.build_model(algorithm)

    return compare_trainings(lambda: make_model(entry.reference), lambda: make_model(entry.algorithm), n_timesteps, on_step)


def compare_trainings(
    make_reference: Callable[[], BaseAlgorithm],
    make_model: Callable[[], BaseAlgorithm],
    n_timesteps: int,
    on_step: Callable[[int], None] = lambda _: None,
) -> list[RolloutComparison]:
    """
    Train two models one after the other, and compare their parameters after every update.

    :param make_reference: makes the model to compare with, seeding everything
    :param make_model: makes the model that should be equal, with the same seed
    :param n_timesteps: environment steps of each training
    :param on_step: called with the number of environment steps since the last call
    :return: one comparison per rollout
    """
    comparisons: list[RolloutComparison] = []
    with tempfile.TemporaryDirectory() as folder:
        reference = make_reference()

        def keep(rollout: int) -> None:
            th.save(reference.policy.state_dict(), Path(folder, f"{rollout}.pt"))

        _train(reference, n_timesteps, AfterUpdate(keep, on_step))
        model = make_model()

        def compare(rollout: int) -> None:
            expected = th.load(Path(folder, f"{rollout}.pt"))
            max_difference, equal = compare_parameters(expected, model.policy.state_dict())
            frac_kill = model.logger.name_to_value["klip/frac_kill"]
            comparisons.append(RolloutComparison(rollout, model.num_timesteps, max_difference, equal, frac_kill))

        _train(model, n_timesteps, AfterUpdate(compare, on_step))
    return comparisons


def compare_parameters(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> tuple[float, bool]:
    """
    :param first: parameters by name
    :param second: parameters by the same names, of the same shapes
    :return: largest absolute difference (NaN if there is a NaN anywhere), and whether all are equal
    :raises KeyError: if a parameter of one is not there in the other
    """
    if first.keys() != second.keys():
        raise KeyError(f"only one of the two has the parameters {sorted(first.keys() ^ second.keys())}")
    differences = th.stack([(first[key].double() - second[key].double()).abs().max() for key in first])
    return differences.max().item(), all(th.equal(first[key], second[key]) for key in first)


def _train(model: BaseAlgorithm, n_timesteps: int, callback: AfterUpdate) -> None:
    try:
        # Nothing is dumped, so what the last update logged is still there after it
        model.learn(n_timesteps, callback=callback, log_interval=None)  # type: ignore[arg-type]
    finally:
        assert model.env is not None
        model.env.close()

"""RL Zoo's experiment manager, taught our algorithms."""

import inspect
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from rl_zoo3 import exp_manager
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_klip.errors import InputError
from sb3_klip.zoo.algorithms import ALGORITHMS, default_config
from sb3_klip.zoo.checks import check_config, check_hyperparams
from sb3_klip.zoo.search import fix_penalty


class KLipExperimentManager(ExperimentManager):
    """
    RL Zoo's experiment manager with the hyperparameter files of our algorithms, which checks everything before it
    writes anything, leaves nothing behind if setting up fails, and says in the end where everything is.

    For RL Zoo's own algorithms it does what it always did.

    :param options: arguments of ``rl_zoo3.exp_manager.ExperimentManager``
    :param config: hyperparameter file, the algorithm's own if not given
    :param more_options: more of them
    """

    def __init__(self, *options: Any, config: str | None = None, **more_options: Any):
        super().__init__(*options, **more_options)
        if config is not None:
            self.config = config
        elif self.algo in ALGORITHMS:
            self.config = str(default_config(self.algo))
        # For messages: where the user wrote what is wrong
        self._source = f"the hyperparameters of {self.env_name.gym_id}" + (f" in {config}" if config else "")
        self._new_folders: list[Path] = []

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        try:
            return super().setup_experiment()
        except BaseException:
            self._remove_new_folders()
            raise

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        check_config(self.config, self.env_name.gym_id)
        hyperparams, saved_hyperparams = super().read_hyperparameters()
        if self.algo in ALGORITHMS:
            try:
                check_hyperparams(hyperparams, ALGORITHMS[self.algo].algorithm)
            except InputError as error:
                raise InputError(f"{self._source}: {error}") from error
        return hyperparams, saved_hyperparams

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        try:
            return super()._preprocess_hyperparams(hyperparams)
        except ImportError:
            raise
        except Exception as error:
            # All that happens there is that texts of the user's are evaluated, so any error is about them
            raise InputError(f"{self._source} make no sense: {type(error).__name__}: {error}") from error

    def create_log_folder(self) -> None:
        folder = Path(self.params_path)
        self._new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        super().create_log_folder()

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        super().save_trained_model(model)
        print(self.summary())

    def create_callbacks(self) -> None:
        with self._own_callbacks():
            super().create_callbacks()

    def objective(self, trial: optuna.Trial) -> float:
        if self.algo in ALGORITHMS:
            fix_penalty(trial, self._hyperparams)
        with self._own_callbacks():
            return super().objective(trial)

    def build_model(self, algorithm: type[BaseAlgorithm]) -> BaseAlgorithm:
        """
        What :meth:`setup_experiment` would train, but of any class and without a file or a callback. The
        hyperparameters that the class does not have are left out.

        :param algorithm: class of the model
        :return: the model, with its environments
        """
        unprocessed_hyperparams, _ = self.read_hyperparameters()
        hyperparams, self.env_wrapper, _, self.vec_env_wrapper = self._preprocess_hyperparams(unprocessed_hyperparams)
        arguments = inspect.signature(algorithm).parameters
        return algorithm(
            env=self.create_envs(self.n_envs, no_log=True),
            seed=self.seed,
            device=self.device,
            **{key: value for key, value in hyperparams.items() if key in arguments},
        )

    def summary(self) -> str:
        """
        :return: where everything of the run is, and the command that replays it
        """
        files = {
            "last model": Path(self.save_path, f"{self.env_name}.zip"),
            "best model": Path(self.save_path, "best_model.zip"),
            "config": Path(self.params_path, "config.yml"),
        }
        lines = [f"{name:10}  {path}" for name, path in files.items() if path.exists()]
        run_id = self.save_path.rpartition("_")[2]
        # A run with --uuid has another kind of name, by which RL Zoo's enjoy cannot find it
        if run_id.isdecimal():
            options = ["--algo", self.algo, "--env", self.env_name.gym_id, "-f", self.log_folder, "--exp-id", run_id]
            packages = getattr(self.args, "gym_packages", [])
            if packages:
                options += ["--gym-packages", *packages]
            lines.append(f"replay it:  {shlex.join(['sb3-klip', 'enjoy', *options])}")
        return "\n".join([f"Everything is in {self.save_path}", *lines])

    @contextmanager
    def _own_callbacks(self) -> Iterator[None]:
        # RL Zoo evaluates all algorithms with the same callbacks, which it looks up in its module
        own = ALGORITHMS.get(self.algo)
        if own is None:
            yield
            return
        theirs = exp_manager.EvalCallback, exp_manager.TrialEvalCallback
        exp_manager.EvalCallback, exp_manager.TrialEvalCallback = own.eval_callback, own.trial_eval_callback  # type: ignore[misc]
        try:
            yield
        finally:
            exp_manager.EvalCallback, exp_manager.TrialEvalCallback = theirs  # type: ignore[misc]

    def _remove_new_folders(self) -> None:
        run = Path(self.save_path)
        if run in self._new_folders:
            shutil.rmtree(run)
        for folder in self._new_folders:
            # Those above it only if they are empty: another run may have begun in the meantime
            if run.is_relative_to(folder) and folder.exists() and not any(folder.iterdir()):
                folder.rmdir()

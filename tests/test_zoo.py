"""The glue to the RL Zoo: registration, hyperparameter files, the search over shapes."""

import argparse
import inspect
from pathlib import Path

import gymnasium as gym
import optuna
import pytest
import rl_zoo3
import rl_zoo3.train
import yaml
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from torch import nn  # noqa: F401  the hyperparameter files name its classes

from sb3_klip.cli import main
from sb3_klip.errors import InputError
from sb3_klip.penalties import make_penalty
from sb3_klip.zoo import ALGORITHMS, KLipExperimentManager, default_config, register
from sb3_klip.zoo.algorithms import hyperparams_folder
from sb3_klip.zoo.checks import check_hyperparams
from sb3_klip.zoo.environments import MASKED_ENVIRONMENTS
from sb3_klip.zoo.search import SEARCH_SPACE, fix_penalty, penalty_converter, sample_penalty


def entries(path):
    """A hyperparameter file, with what RL Zoo evaluates evaluated."""
    content = yaml.safe_load(Path(path).read_text())
    for entry in content.values():
        for key in ("policy_kwargs", "normalize"):
            if isinstance(entry.get(key), str):
                entry[key] = eval(entry[key])
    return content


ZOO_PPO = entries(Path(rl_zoo3.__file__).parent / "hyperparams/ppo.yml")
KLIP_PPO = entries(default_config("klip_ppo"))


@pytest.fixture
def trial():
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()


def test_register_again():
    register()
    before = dict(rl_zoo3.ALGOS)
    register()
    assert rl_zoo3.ALGOS == before
    assert rl_zoo3.train.ExperimentManager is KLipExperimentManager


@pytest.mark.parametrize("name", ALGORITHMS)
def test_registered(name):
    register()
    assert rl_zoo3.ALGOS[name] is ALGORITHMS[name].algorithm
    assert issubclass(ALGORITHMS[name].algorithm, ALGORITHMS[name].reference)
    assert name in HYPERPARAMS_SAMPLER and name in HYPERPARAMS_CONVERTER


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_entry_is_valid(name):
    """No typo in a key, no 1e-4 that YAML takes for text."""
    for env_id, hyperparams in entries(default_config(name)).items():
        check_hyperparams(hyperparams, ALGORITHMS[name].algorithm)
        assert hyperparams["n_timesteps"] > 0, env_id


@pytest.mark.parametrize("env_id", ZOO_PPO)
def test_values_of_ppo(env_id):
    """The hard gate is PPO, so what was tuned for PPO applies as it is."""
    assert KLIP_PPO[env_id] == ZOO_PPO[env_id]


@pytest.mark.parametrize("env_id", [env_id for env_id in ZOO_PPO if env_id.endswith("-v4")])
def test_mujoco_v5(env_id):
    assert KLIP_PPO[env_id.replace("-v4", "-v5")] == ZOO_PPO[env_id]


ZOO_PPO_LSTM = entries(Path(rl_zoo3.__file__).parent / "hyperparams/ppo_lstm.yml")
KLIP_PPO_LSTM = entries(default_config("klip_ppo_lstm"))


@pytest.mark.parametrize("env_id", [env_id for env_id in ZOO_PPO_LSTM if env_id != "default"])
def test_values_of_ppo_lstm(env_id):
    assert KLIP_PPO_LSTM[env_id] == ZOO_PPO_LSTM[env_id]
    for old, new in (("-v4", "-v5"), ("NoVel-v2", "NoVel-v3")):
        if env_id.endswith(old):
            assert KLIP_PPO_LSTM[env_id.removesuffix(old) + new] == ZOO_PPO_LSTM[env_id]


def test_environments_with_invalid_actions():
    register()
    for env_id in MASKED_ENVIRONMENTS:
        env = gym.make(env_id)
        env.reset(seed=0)
        masks = env.get_wrapper_attr("action_masks")()
        assert any(masks) and not all(masks)
        assert env_id in entries(default_config("maskable_klip_ppo"))


PAPER = sorted((hyperparams_folder() / "paper").glob("*.yml"))


def test_paper_protocol_is_one_but_for_the_penalty():
    """The variants of the paper's experiments differ in nothing else, and each names another penalty."""
    files = [entries(path) for path in PAPER]
    penalties = [make_penalty(file["protocol"]["penalty"]).spec() for file in files]
    for file in files:
        for entry in file.values():
            # Anchors make some entries one and the same dict
            entry.pop("penalty", None)
    assert all(file == files[0] for file in files)
    assert len(PAPER) == 16
    # The per-sample form and PPO-Clip are the same gate
    assert len({str(spec) for spec in penalties}) == 15


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_paper_files_are_valid(path):
    content = entries(path)
    tasks = ["CartPole-v1", "LunarLander-v3", "HalfCheetah-v4", "Hopper-v4", "Walker2d-v4", "Ant-v4", "Humanoid-v4"]
    assert list(content) == ["protocol", *tasks]
    for task in tasks:
        check_hyperparams(content[task], ALGORITHMS["klip_ppo"].algorithm)
        assert content[task]["penalty"] == content["protocol"]["penalty"]
        name = make_penalty(content[task]["penalty"]).name
        assert path.stem.startswith(name) or name == "hard"


def make_manager(algo, log_folder, **options):
    return KLipExperimentManager(argparse.Namespace(), algo, "CartPole-v1", str(log_folder), **options)


def test_default_config_of_each_algorithm(tmp_path):
    register()
    assert Path(make_manager("klip_ppo", tmp_path).config) == default_config("klip_ppo")
    assert Path(make_manager("ppo", tmp_path).config).parent.parent == Path(rl_zoo3.__file__).parent
    assert make_manager("klip_ppo", tmp_path, config="mine.yml").config == "mine.yml"


def test_failed_setup_leaves_only_what_was_there(tmp_path):
    register()
    logs = tmp_path / "logs"
    other_run = logs / "klip_ppo" / "CartPole-v1_1"
    other_run.mkdir(parents=True)
    manager = make_manager("klip_ppo", logs, n_timesteps=100, env_kwargs={"no_such_argument": 1})
    with pytest.raises(TypeError, match="no_such_argument"):
        manager.setup_experiment()
    assert list(logs.rglob("*")) == [other_run.parent, other_run]

    other_run.rmdir()
    other_run.parent.rmdir()
    logs.rmdir()
    with pytest.raises(TypeError, match="no_such_argument"):
        manager.setup_experiment()
    assert not logs.exists()


@pytest.mark.parametrize(
    ("hyperparams", "message"),
    [
        ({"batch_sise": 3}, "did you mean batch_size"),
        ({"seed": 3}, "--seed"),
        ({"n_steps": 64.0}, "n_steps must be a whole number, got 64.0"),
        ({"use_sde": 1}, "use_sde must be true or false"),
        ({"ent_coef": "1e-4"}, "write 1.0e-4"),
        ({"target_kl": "small"}, "a number or None"),
        ({"learning_rate": "linear"}, "lin_<number>"),
        ({"policy": "MlpPolcy"}, "known are MlpPolicy"),
        ({"penalty_kwargs": 0.05}, "must be a dict"),
        ({"penalty": "hardd"}, "did you mean 'hard'"),
    ],
)
def test_wrong_hyperparameters(hyperparams, message):
    right = {"policy": "MlpPolicy", "n_timesteps": 1000.0, "learning_rate": "lin_0.1", "target_kl": None, "gamma": 1}
    algorithm = ALGORITHMS["klip_ppo"].algorithm
    check_hyperparams(right, algorithm)
    with pytest.raises(InputError, match=message):
        check_hyperparams({**right, **hyperparams}, algorithm)


@pytest.mark.parametrize("missing", ["policy", "n_timesteps"])
def test_missing_hyperparameter(missing):
    hyperparams = {"policy": "MlpPolicy", "n_timesteps": 1000}
    del hyperparams[missing]
    with pytest.raises(InputError, match=missing):
        check_hyperparams(hyperparams, ALGORITHMS["klip_ppo"].algorithm)


@pytest.mark.parametrize("name", SEARCH_SPACE)
def test_search_space_is_admissible(name):
    """Both ends of every range are values that the shape takes."""
    for end in ("low", "high"):
        make_penalty(name, **{key: getattr(limits, end) for key, limits in SEARCH_SPACE[name].items()})


def test_search_is_conditional():
    """Only parameters of the chosen shape are asked for, and in the end every shape is chosen."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    chosen = set()
    for _ in range(200):
        trial = study.ask()
        sampled = sample_penalty(trial)
        name, parameters = sampled["penalty"], sampled["penalty_kwargs"]
        chosen.add(name)
        assert parameters.keys() == SEARCH_SPACE[name].keys()
        assert trial.params == {"penalty": name, **{f"{name}.{key}": value for key, value in parameters.items()}}
        make_penalty(name, **parameters)
    assert chosen == set(SEARCH_SPACE)


@pytest.mark.parametrize(
    ("hyperparams", "name", "fixed", "searched"),
    [
        ({"penalty": "sapo"}, "sapo", {}, {"tau_pos", "tau_neg"}),
        ({"penalty": "sapo", "penalty_kwargs": {"tau_pos": 2.0}}, "sapo", {"tau_pos": 2.0}, {"tau_neg"}),
        ({"penalty": {"name": "sigmoid", "softness": "lin_0.1"}}, "sigmoid", {"softness": "lin_0.1"}, set()),
        ({"penalty": make_penalty("leaky", alpha=0.2)}, "leaky", {"alpha": 0.2, "clip_range": None}, set()),
        ({"penalty": "none"}, "none", {}, set()),
    ],
)
def test_fixed_penalty_is_not_searched(trial, hyperparams, name, fixed, searched):
    fix_penalty(trial, hyperparams)
    sampled = sample_penalty(trial)
    parameters = sampled["penalty_kwargs"]
    assert sampled["penalty"] == name
    assert parameters.keys() == fixed.keys() | searched
    assert {key: parameters[key] for key in fixed} == fixed
    # The trial holds all of it, so that it can be replayed without the command line
    assert penalty_converter(dict)(trial.params) == sampled


def test_optimize_and_replay(tmp_path, monkeypatch):
    """Through the command line: a study with a fixed shape, then its trial trained by number alone."""
    monkeypatch.chdir(tmp_path)

    def tiny(*_):
        return {"n_steps": 32, "batch_size": 32, "n_epochs": 1}

    def convert(params):
        return {**params, **tiny()}

    monkeypatch.setitem(ALGORITHMS, "klip_ppo", ALGORITHMS["klip_ppo"]._replace(sampler=tiny, converter=convert))
    study = ["--storage", "sqlite:///study.db", "--study-name", "tiny", "-n", "64", "--eval-episodes", "1"]
    search = ["-optimize", "--n-trials", "2", "--n-evaluations", "1", "--no-optim-plots", "--seed", "0"]
    assert main(["train", *study, *search, "-params", "n_envs:1", "penalty:'leaky'"]) == 0
    trials = optuna.load_study(study_name="tiny", storage="sqlite:///study.db").trials
    assert [set(trial.params) for trial in trials] == [{"penalty", "leaky.alpha"}] * 2

    assert main(["train", *study, "--trial-id", "1", "-params", "n_envs:1"]) == 0
    (config,) = tmp_path.glob("logs/klip_ppo/CartPole-v1_*/CartPole-v1/config.yml")
    saved = dict(yaml.load(config.read_text(), Loader=yaml.UnsafeLoader))
    assert saved["penalty"] == "leaky"
    assert saved["penalty_kwargs"] == {"alpha": trials[1].params["leaky.alpha"]}


def test_reference_has_no_argument_of_ours():
    """What is left out for the reference is exactly the penalty."""
    for entry in ALGORITHMS.values():
        ours, theirs = (inspect.signature(cls).parameters for cls in (entry.algorithm, entry.reference))
        assert ours.keys() - theirs.keys() >= {"penalty", "penalty_kwargs"}
        assert theirs.keys() <= ours.keys()

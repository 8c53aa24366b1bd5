"""With the hard penalty KLipPPO is SB3's PPO: parameters, optimizer and logs are equal to the last bit."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_klip import KLipPPO
from tests.envs import SMALL_IMAGE, NoisyRewards, several
from tests.runs import UpdateValues, assert_same_logs, assert_same_model

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")

#: What a case does not say itself. The learning rate makes ratios leave the band early.
DEFAULTS = dict(n_steps=128, batch_size=64, n_epochs=4, learning_rate=3e-3, device="cpu", seed=3)
N_ROLLOUTS = 3


def train(algorithm, policy, make_env, **arguments):
    """A model that was trained for a few rollouts, and what its updates logged."""
    arguments = {**DEFAULTS, **arguments}
    set_random_seed(7)  # Some environments draw from NumPy's generator when they are made
    env = make_env()
    model = algorithm(policy, env, **arguments)
    log = UpdateValues()
    model.learn(N_ROLLOUTS * model.n_steps * model.n_envs, callback=log)
    model.env.close()
    return model, log.updates


def train_both(policy, make_env, **arguments):
    ppo, expected = train(PPO, policy, make_env, **arguments)
    klip, updates = train(KLipPPO, policy, make_env, penalty="hard", **arguments)
    assert len(expected) == len(updates) == N_ROLLOUTS
    # Where no sample was ever killed, the plain policy gradient would pass too
    assert max(values["klip/frac_kill"] for values in updates) > 0
    assert_same_model(klip, ppo)
    assert_same_logs(updates, expected)
    return klip, updates


def cartpole():
    return gym.make("CartPole-v1")


def pendulum():
    return gym.make("Pendulum-v1")


def discrete():
    return NoisyRewards(spaces.Discrete(4))


def multi_discrete():
    return NoisyRewards(spaces.MultiDiscrete([3, 4]))


def multi_binary():
    return NoisyRewards(spaces.MultiBinary(3))


def box():
    return NoisyRewards(spaces.Box(-1.0, 1.0, (2,), dtype=np.float32))


ACTION_SPACES = [cartpole, multi_discrete, multi_binary, pendulum, box]


@pytest.mark.parametrize("make_env", ACTION_SPACES)
@pytest.mark.parametrize("normalize_advantage", [True, False])
def test_action_spaces(make_env, normalize_advantage):
    # Without normalization small advantages give small steps; an odd batch size, truncated at the end
    arguments = {} if normalize_advantage else dict(learning_rate=1e-2)
    train_both("MlpPolicy", make_env, batch_size=37, normalize_advantage=normalize_advantage, **arguments)


# 128 samples: whole minibatches, truncated ones, a single sample left over, and a batch larger than the rollout
@pytest.mark.parametrize("batch_size", [32, 48, 50, 63, 100, 127, 128, 200])
def test_batch_sizes(batch_size):
    train_both("MlpPolicy", discrete, batch_size=batch_size, n_epochs=6)


def test_minibatches_of_one_sample():
    train_both("MlpPolicy", discrete, n_steps=32, batch_size=1, normalize_advantage=False)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(dict(), id="resampled-per-rollout"),
        pytest.param(dict(sde_sample_freq=4, batch_size=37), id="resampled-often"),
        pytest.param(dict(policy_kwargs=dict(squash_output=True), ent_coef=0.01), id="squashed-without-entropy"),
        pytest.param(dict(policy_kwargs=dict(full_std=False, use_expln=True), batch_size=50), id="expln"),
    ],
)
def test_gsde(arguments):
    train_both("MlpPolicy", pendulum, use_sde=True, learning_rate=1e-2, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(dict(clip_range=0.05), id="narrow-band"),
        pytest.param(dict(clip_range=LinearSchedule(0.2, 0.0, 1.0), batch_size=50), id="clip-range-schedule"),
        pytest.param(dict(learning_rate=lambda progress: 5e-3 * progress + 1e-3), id="learning-rate-schedule"),
        pytest.param(dict(clip_range_vf=0.1, batch_size=50), id="clip-range-vf"),
        pytest.param(dict(clip_range_vf=lambda progress: 0.1 + 0.1 * progress), id="clip-range-vf-schedule"),
        pytest.param(dict(ent_coef=0.05, vf_coef=0.8, batch_size=50), id="entropy-bonus"),
        pytest.param(dict(max_grad_norm=0.01, gamma=0.9, learning_rate=1e-2), id="small-gradient-norm"),
        pytest.param(dict(n_epochs=20, batch_size=40), id="many-epochs"),
        pytest.param(dict(learning_rate=0.1), id="large-learning-rate"),
        pytest.param(
            dict(policy_kwargs=dict(net_arch=[16], activation_fn=th.nn.ReLU), gae_lambda=0.8, learning_rate=1e-2),
            id="policy-kwargs",
        ),
        pytest.param(dict(policy_kwargs=dict(share_features_extractor=False)), id="two-feature-extractors"),
        pytest.param(dict(policy_kwargs=dict(optimizer_class=th.optim.SGD), learning_rate=3.0, vf_coef=1e-4), id="sgd"),
    ],
)
@pytest.mark.parametrize("make_env", [cartpole, pendulum])
def test_options(make_env, arguments):
    train_both("MlpPolicy", make_env, **arguments)


@pytest.mark.parametrize("make_env", [cartpole, pendulum])
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(dict(target_kl=0.01), id="tight"),
        pytest.param(dict(target_kl=0.02, batch_size=50, clip_range_vf=0.2), id="wide"),
    ],
)
def test_early_stopping(make_env, arguments):
    model, _ = train_both("MlpPolicy", make_env, n_epochs=10, learning_rate=1e-2, **arguments)
    # SB3 counts the epochs that were begun
    assert model._n_updates < 10 * N_ROLLOUTS


def test_a_step_that_moves_the_policy_out_of_all_bounds():
    """Log-ratios in the negative hundreds, whose exponential is 0 in SB3."""
    many_actions = spaces.Box(-1.0, 1.0, (30,), dtype=np.float32)
    _, updates = train_both("MlpPolicy", lambda: NoisyRewards(many_actions), learning_rate=0.5, batch_size=50)
    assert max(values["train/approx_kl"] for values in updates) > 200


@pytest.mark.parametrize("batch_size", [64, 50])
def test_several_environments(batch_size):
    train_both("MlpPolicy", lambda: several(3, spaces.MultiDiscrete([3, 2])), n_steps=43, batch_size=batch_size)


def test_environments_in_subprocesses():
    make_env = lambda: make_vec_env("CartPole-v1", n_envs=2, seed=5, vec_env_cls=SubprocVecEnv)  # noqa: E731
    train_both("MlpPolicy", make_env, n_steps=64, batch_size=50)


@pytest.mark.parametrize("discrete_actions", [True, False])
def test_dict_observations(discrete_actions):
    train_both(
        "MultiInputPolicy",
        lambda: SimpleMultiObsEnv(random_start=False, discrete_actions=discrete_actions),
        n_steps=48,
        batch_size=20,
    )


def test_images():
    train_both("CnnPolicy", lambda: NoisyRewards(spaces.Discrete(3), SMALL_IMAGE), n_steps=48, batch_size=20)


def test_normalized_observations_and_rewards():
    make_env = lambda: VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=5))  # noqa: E731
    model, _ = train_both("MlpPolicy", make_env, n_steps=64, batch_size=50)
    assert model.get_vec_normalize_env().obs_rms.count > 100


@pytest.mark.parametrize("env_ids", [["LunarLander-v3"], ["HalfCheetah-v4", "HalfCheetah-v5"]], ids=lambda ids: ids[0])
def test_real_tasks(env_ids, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log file where it is run
    make_env = available(env_ids)
    train_both("MlpPolicy", make_env, n_steps=512, batch_size=100, n_epochs=10)


def available(env_ids):
    """A function that makes the first of some environments that is installed; skips the test if none is."""
    for env_id in env_ids:
        try:
            gym.make(env_id).close()
        except (gym.error.Error, ImportError) as error:
            reason = error
        else:
            return lambda: gym.make(env_id)
    pytest.skip(f"{' or '.join(env_ids)} cannot be made: {reason}")

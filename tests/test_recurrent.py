"""RecurrentKLipPPO is sb3-contrib's RecurrentPPO with the hard penalty, and takes its place with every other."""

import inspect
import io

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_klip import RecurrentKLipPPO
from sb3_klip.penalties import Penalty
from tests.envs import SMALL_IMAGE, UNIT_BOX, Clock, NoisyRewards
from tests.runs import (
    DIAGNOSTICS,
    FAMILY,
    Break,
    Snapshots,
    assert_same_logs,
    assert_same_model,
    differences,
    quiet,
    state_of,
    updates_of,
)

N_ROLLOUTS = 2
#: Ratios leave the band early.
DEFAULTS = dict(n_steps=64, batch_size=32, n_epochs=4, learning_rate=2e-2, device="cpu", seed=3)
POLICY = dict(net_arch=[8], lstm_hidden_size=6)
BOX = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)


class TwoSenses(gym.ObservationWrapper):
    """The same observations, as a dictionary of two."""

    def __init__(self, env):
        super().__init__(env)
        parts = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32), spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)
        self.observation_space = spaces.Dict({"left": parts[0], "right": parts[1]})

    def observation(self, observation):
        return {"left": observation[:1], "right": observation[1:]}


class Echo(gym.Env):
    """What is seen at the first step is to be said at the last: nobody can without a memory."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.word = 0, int(self.np_random.integers(2))
        return np.array([2 * self.word - 1, 0], dtype=np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time == 4
        reward = float(over and action == self.word)
        return np.array([0, self.time == 3], dtype=np.float32), reward, over, False, {}


def make_model(algorithm, action_space=None, n_envs=1, policy="MlpLstmPolicy", make_env=None, **arguments):
    action_space = spaces.Discrete(4) if action_space is None else action_space
    arguments = {**DEFAULTS, **arguments, "policy_kwargs": {**POLICY, **arguments.get("policy_kwargs", {})}}
    env = DummyVecEnv([make_env or (lambda: NoisyRewards(action_space))] * n_envs)
    return quiet(algorithm(policy, env, **arguments))


def train_both(*args, **arguments):
    original = make_model(RecurrentPPO, *args, **arguments)
    expected = updates_of(original, N_ROLLOUTS)
    klip = make_model(RecurrentKLipPPO, *args, penalty="hard", **arguments)
    updates = updates_of(klip, N_ROLLOUTS)
    assert max(values["klip/frac_kill"] for values in updates) > 0
    assert_same_model(klip, original)
    assert_same_logs(updates, expected)
    return klip, original


# The hard penalty


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        pytest.param(dict(), id="separate"),
        pytest.param(dict(enable_critic_lstm=False), id="no-critic-lstm"),
        pytest.param(dict(enable_critic_lstm=False, shared_lstm=True), id="shared"),
        pytest.param(dict(n_lstm_layers=2, share_features_extractor=False), id="two-layers"),
    ],
)
@pytest.mark.parametrize("batch_size", [32, 50])
def test_kinds_of_memory(policy_kwargs, batch_size):
    train_both(policy_kwargs=policy_kwargs, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [17, 37, 200])
@pytest.mark.parametrize("action_space", [spaces.MultiDiscrete([3, 4]), BOX], ids=["multi-discrete", "box"])
def test_action_spaces_and_batch_sizes(action_space, batch_size):
    train_both(action_space, batch_size=batch_size)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(dict(n_envs=3, n_steps=21, batch_size=40), id="several-environments"),
        pytest.param(dict(clip_range_vf=0.1, batch_size=50), id="clip-range-vf"),
        pytest.param(dict(clip_range_vf=lambda p: 0.3 * p, vf_coef=0.3, batch_size=37), id="clip-range-vf-schedule"),
        pytest.param(dict(ent_coef=0.02, vf_coef=0.7, batch_size=50), id="coefficients"),
        pytest.param(dict(normalize_advantage=False, batch_size=37, learning_rate=5e-2), id="advantages-as-they-are"),
        pytest.param(dict(clip_range=LinearSchedule(0.2, 0.0, 1.0), learning_rate=lambda p: 4e-2 * p), id="schedules"),
        pytest.param(dict(max_grad_norm=0.02, gae_lambda=0.7), id="small-gradient-norm"),
        pytest.param(dict(batch_size=None, n_epochs=8), id="whole-rollout"),
        pytest.param(dict(action_space=BOX, use_sde=True, batch_size=50), id="gsde"),
        pytest.param(dict(action_space=BOX, use_sde=True, sde_sample_freq=4), id="gsde-resampled-often"),
        pytest.param(
            dict(action_space=BOX, use_sde=True, batch_size=37, policy_kwargs=dict(squash_output=True), ent_coef=0.01),
            id="gsde-squashed",
        ),
        pytest.param(
            dict(
                policy="MultiInputLstmPolicy",
                make_env=lambda: TwoSenses(NoisyRewards(spaces.Discrete(3))),
                n_envs=2,
                batch_size=50,
            ),
            id="dictionary-observations",
        ),
        pytest.param(
            dict(
                policy="CnnLstmPolicy",
                make_env=lambda: NoisyRewards(spaces.Discrete(3), SMALL_IMAGE),
                n_steps=32,
                batch_size=20,
                n_epochs=4,
            ),
            id="images",
        ),
        pytest.param(dict(make_env=lambda: Clock(episode_length=1), batch_size=50), id="episodes-of-one-step"),
    ],
)
def test_options(arguments):
    train_both(**arguments)


def test_early_stopping_stops_as_early():
    klip, original = train_both(target_kl=0.02, n_epochs=10)
    assert klip._n_updates == original._n_updates < 10 * N_ROLLOUTS


def test_a_single_sample_left_over():
    """Its advantage has no standard deviation; the original's parameters become NaN."""
    model = make_model(RecurrentKLipPPO, n_steps=33)
    model.learn(66)
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())


def test_arguments_are_those_of_the_original():
    for method in ("__init__", "learn"):
        ours, originals = (inspect.signature(getattr(cls, method)).parameters for cls in (RecurrentKLipPPO, RecurrentPPO))
        assert list(ours)[: len(originals)] == list(originals)
        for name in originals:
            if name != "tb_log_name":
                assert ours[name].default == originals[name].default, name
        additional = {name: ours[name].default for name in ours if name not in originals}
        assert inspect.Parameter.empty not in additional.values()
        if method == "__init__":
            assert additional["penalty"] == "hard" and additional["penalty_kwargs"] is None


# Every penalty


@pytest.mark.parametrize("name", FAMILY)
def test_every_penalty_trains_saves_and_resumes(name):
    """The episodes end where the rollouts do: as the original, a saved model does not hold the state of its memory."""
    make_env = lambda: Clock(episode_length=12)  # noqa: E731
    model = make_model(RecurrentKLipPPO, make_env=make_env, n_envs=2, n_steps=24, batch_size=24, penalty=FAMILY[name])
    initial, log = state_of(model.policy), Break(after_updates=1)
    model.learn(2 * 48, callback=log)
    assert set(differences(model.policy.state_dict(), initial)) == initial.keys()
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())
    assert all(values.keys() >= DIAGNOSTICS for values in log.updates)

    resumed, updates = log.resume(RecurrentKLipPPO, 2 * 48)
    assert_same_model(resumed, model)
    assert_same_logs(updates, log.updates[1:], prefix=("train/", "klip/"))
    assert resumed.penalty.spec() == model.penalty.spec()
    assert resumed.penalty.state_dict() == model.penalty.state_dict()


@pytest.mark.parametrize("name", ["kl_adaptive", "nested", "position_aware"])
def test_penalties_that_look_at_the_policy_or_the_episode(name):
    """With gSDE, dictionary observations and images."""
    for arguments in (
        dict(action_space=BOX, use_sde=True),
        dict(policy="MultiInputLstmPolicy", make_env=lambda: TwoSenses(NoisyRewards(BOX)), n_envs=2),
        dict(policy="CnnLstmPolicy", make_env=lambda: NoisyRewards(spaces.MultiDiscrete([2, 3]), SMALL_IMAGE), n_epochs=1),
    ):
        model = make_model(RecurrentKLipPPO, n_steps=32, batch_size=20, penalty=FAMILY[name], **arguments)
        model.learn(2 * model.n_steps * model.n_envs)
        assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())


def test_measuring_changes_nothing():
    fixed = make_model(RecurrentKLipPPO, penalty="kl_fixed", batch_size=20)
    updates_of(fixed, 2)
    kwargs = dict(tolerance=1e12)
    adaptive = make_model(RecurrentKLipPPO, penalty="kl_adaptive", penalty_kwargs=kwargs, batch_size=20)
    updates = updates_of(adaptive, 2)
    assert_same_model(adaptive, fixed)
    assert all(values["klip/kl"] > 0 for values in updates)


@pytest.mark.parametrize("divergence", ["analytic", "sample", "k3"])
@pytest.mark.parametrize("batch_size", [20, 200])
def test_measured_move_leaves_out_the_padding(batch_size, divergence):
    arguments = dict(n_envs=2, batch_size=batch_size)
    model = make_model(RecurrentKLipPPO, penalty="kl_adaptive", penalty_kwargs=dict(divergence=divergence), **arguments)
    log = Snapshots()
    model.learn(2 * 64, callback=log)
    random_state = np.random.get_state()
    old, new = (make_model(RecurrentKLipPPO).policy for _ in range(2))
    old.load_state_dict(log.before[0])
    new.load_state_dict(log.after[0])
    # Measuring leaves the generator as it was, so it gives the same sequences once more
    np.random.set_state(random_state)
    moved, n_entries = [], 0
    for data in model.rollout_buffer.get(batch_size):
        with th.no_grad():
            log_p, log_q = (logits_of(policy, data).log_softmax(dim=1) for policy in (old, new))
        if divergence == "analytic":
            entry = (log_p.exp() * (log_p - log_q)).sum(dim=1)
        else:
            log_ratio = log_q.gather(1, data.actions.long())[:, 0] - data.old_log_prob
            entry = -log_ratio if divergence == "sample" else log_ratio.exp() - 1 - log_ratio
        moved.append(entry[data.mask > 0.5])
        n_entries += len(entry)
    moved = th.cat(moved)
    assert len(moved) == 2 * 64 < n_entries
    assert log.updates[0]["klip/kl"] == pytest.approx(moved.mean().item(), rel=1e-3, abs=1e-6)
    assert abs(moved.mean()) > 1e-4


def logits_of(policy, data):
    policy.evaluate_actions(data.observations, data.actions.long().flatten(), data.lstm_states, data.episode_starts)
    return policy.action_dist.distribution.logits


class SampleCounter(Penalty):
    """Changes nothing, and keeps how many samples it got."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def beta(self, inputs):
        self.sizes.append(len(inputs.ratio))
        return th.zeros_like(inputs.ratio)

    def surrogate(self, inputs):
        # In closed form: the numerical one would ask for the coefficients of other samples
        return inputs.ratio * inputs.advantages


def test_padding_counts_nowhere():
    """Penalties see no padding, and the shares that are logged are shares of the samples."""
    penalty = SampleCounter()
    model = make_model(RecurrentKLipPPO, n_envs=2, batch_size=20, penalty=penalty, n_epochs=1)
    penalty.sizes.clear()
    values = updates_of(model, 1)[0]
    assert set(penalty.sizes) == {20, 8}  # 128 samples, whatever the number of sequences
    for key in ("frac_in_band", "frac_kill", "frac_pass"):
        share = values[f"klip/{key}"] * 128
        assert share == pytest.approx(round(share), abs=1e-4)


# In the original's place


def test_prediction_has_a_memory():
    model = make_model(RecurrentKLipPPO, penalty="sigmoid", n_envs=2)
    model.learn(128)
    observation, starts = np.zeros((2, *UNIT_BOX.shape), dtype=np.float32), np.ones(2, dtype=bool)
    action, state = model.predict(observation, state=None, episode_start=starts)
    assert action.shape == (2,)
    assert [part.shape for part in state] == [(1, 2, POLICY["lstm_hidden_size"])] * 2
    _, later = model.predict(observation, state=state, episode_start=np.array([False, True]))
    # The memory of the second environment was wiped
    assert not np.allclose(later[0][:, 0], state[0][:, 0])
    np.testing.assert_allclose(later[0][:, 1], state[0][:, 1], rtol=1e-5)


def test_save_and_load():
    model = make_model(RecurrentKLipPPO, penalty="linear_ramp", penalty_kwargs=dict(softness="lin_0.2"))
    model.learn(64)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = RecurrentKLipPPO.load(file, env=model.env, device="cpu")
    assert loaded.penalty.spec() == model.penalty.spec()
    assert_same_model(loaded, model)
    observation, states, actions = model.env.reset(), [None, None], []
    for step in range(5):
        for i, one in enumerate((model, loaded)):
            action, states[i] = one.predict(observation, states[i], np.array([step == 0]), deterministic=True)
            actions.append(action)
        np.testing.assert_array_equal(*actions[-2:])
        np.testing.assert_array_equal(states[0], states[1])
        observation = observation + 0.1
    quiet(loaded).learn(64)


def test_a_model_of_the_original_goes_on_here():
    """Its parameters fit."""
    original = make_model(RecurrentPPO)
    original.learn(64)
    klip = make_model(RecurrentKLipPPO, penalty="spo")
    klip.set_parameters(original.get_parameters())
    assert_same_model(klip, original)
    klip.learn(64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hard", "sigmoid", "kl_adaptive"])
def test_it_learns_what_needs_a_memory(name):
    """Chance says the right word in half of the episodes."""
    arguments = dict(n_steps=64, batch_size=128, learning_rate=5e-3, n_epochs=10, penalty=name)
    model = make_model(RecurrentKLipPPO, make_env=Echo, n_envs=8, **arguments)
    model.learn(40 * 64 * 8)
    mean_reward, _ = evaluate_policy(model, DummyVecEnv([Echo]), n_eval_episodes=50, warn=False)
    assert mean_reward > 0.9

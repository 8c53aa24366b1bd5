"""A penalty that asks for positions gets, for each sample of each minibatch, the steps since its episode began."""

import io

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_klip import KLipPPO, MaskableKLipPPO, RecurrentKLipPPO
from sb3_klip.algorithms.positions import positions_in_episode
from sb3_klip.penalties import Penalty, PenaltyInputs, make_penalty
from tests.runs import differences, quiet, state_of

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")

#: Episode lengths of three environments, in turn: some of one step, one longer than several rollouts.
LENGTHS = [(5, 7, 1, 3), (60,), (1, 12)]
N_STEPS = 23


class Diary(gym.Env):
    """
    Its observation says which environment it is (from 1 on), the step in the episode, and the steps ever made.

    :param number: which environment it is
    :param lengths: lengths of its episodes, in turn; every second one ends by truncation
    :param as_dict: whether the observation is a dictionary
    """

    action_space = spaces.Discrete(3)

    def __init__(self, number, lengths, as_dict=False):
        self.number, self.lengths, self.as_dict = number, lengths, as_dict
        box = spaces.Box(0.0, np.inf, (3,), dtype=np.float32)
        self.observation_space = spaces.Dict({"page": box}) if as_dict else box
        self.episode, self.ever = -1, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.step_in_episode = 0
        return self._observe(), {}

    def step(self, action):
        self.step_in_episode += 1
        over = self.step_in_episode >= self.lengths[self.episode % len(self.lengths)]
        truncated = over and self.episode % 2 == 1
        return self._observe(), float(action), over and not truncated, truncated, {}

    def action_masks(self):
        return np.arange(3) != self.ever % 3

    def _observe(self):
        self.ever += 1
        page = np.array([self.number, self.step_in_episode, self.ever], dtype=np.float32)
        return {"page": page} if self.as_dict else page


class Recorder(Penalty):
    """Changes nothing, and keeps the positions that it was given: one tensor per minibatch, see :func:`watched`."""

    uses_positions = True

    def __init__(self, **parameters):
        super().__init__(**parameters)
        self.positions = []

    def beta(self, inputs):
        return th.zeros_like(inputs.ratio)

    def effective_advantage(self, inputs):
        if self.positions:
            self.positions[-1] = inputs.positions
        return inputs.advantages

    def surrogate(self, inputs):
        # In closed form: the numerical one would ask for the effective advantage of other samples
        return inputs.ratio * inputs.advantages


def diaries(n_envs=3, as_dict=False):
    return DummyVecEnv([lambda i=i: Diary(i + 1, LENGTHS[i], as_dict) for i in range(n_envs)])


def watched(model):
    """Make a model keep the observations of the minibatches that it evaluates."""
    observations, evaluate_actions = [], model.policy.evaluate_actions

    def watch(batch_observations, *args, **kwargs):
        observations.append(batch_observations)
        model.penalty.positions.append(None)
        return evaluate_actions(batch_observations, *args, **kwargs)

    model.policy.evaluate_actions = watch
    model.penalty.positions.clear()
    return observations


def make_recorder(algorithm=KLipPPO, policy="MlpPolicy", env=None, **arguments):
    """A model that records, and the list of its minibatches' observations."""
    defaults = dict(n_steps=N_STEPS, batch_size=16, n_epochs=2, device="cpu", seed=3)
    policy_kwargs = dict(net_arch=[8], **arguments.pop("policy_kwargs", {}))
    arguments = {**defaults, "policy_kwargs": policy_kwargs, "penalty": Recorder(), **arguments}
    model = quiet(algorithm(policy, diaries() if env is None else env, **arguments))
    return model, watched(model)


def pages_and_positions(model, observations):
    """All samples of all minibatches in order: observations ``(N, 3)``, and the positions ``(N,)`` they came with."""
    assert len(observations) == len(model.penalty.positions) > 0
    pages = [batch["page"] if isinstance(batch, dict) else batch for batch in observations]
    # Padding has no number
    pages = [page[page[:, 0] > 0] for page in pages]
    for page, positions in zip(pages, model.penalty.positions, strict=True):
        assert positions.shape == (len(page),)
    return th.cat(pages), th.cat(model.penalty.positions)


def assert_positions_are_the_steps(model, observations, n_rollouts, n_envs=3):
    pages, positions = pages_and_positions(model, observations)
    assert th.equal(positions.float(), pages[:, 1])
    # Every sample once per epoch, and they do not come in order
    assert len(pages) == n_rollouts * model.n_epochs * N_STEPS * n_envs
    assert len(pages.unique(dim=0)) == n_rollouts * N_STEPS * n_envs
    return pages


def test_positions_by_hand():
    starts = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0]], dtype=np.float32)
    positions, following = positions_in_episode(starts, np.array([9.0, 7.0, 0.0]))
    assert positions.tolist() == [[0, 7, 0], [1, 8, 0], [2, 0, 0], [0, 1, 1]]
    assert following.tolist() == [1, 2, 2]


@pytest.mark.parametrize("cut", [1, 2, 7, 12])
def test_rollouts_one_after_another_are_one_long_rollout(cut):
    starts = np.random.default_rng(0).random((13, 4)) < 0.2
    first = np.array([3.0, 0.0, 100.0, 1.0])
    whole, following = positions_in_episode(starts, first)
    before, between = positions_in_episode(starts[:cut], first)
    after, end = positions_in_episode(starts[cut:], between)
    np.testing.assert_array_equal(np.concatenate([before, after]), whole)
    np.testing.assert_array_equal(end, following)


@pytest.mark.parametrize("batch_size", [1, 16, 69, 200])
@pytest.mark.parametrize("as_dict", [False, True])
def test_shuffled_minibatches_across_rollouts(batch_size, as_dict):
    arguments = dict(batch_size=batch_size, normalize_advantage=batch_size > 1, n_epochs=1 if batch_size == 1 else 2)
    model, observations = make_recorder(
        policy="MultiInputPolicy" if as_dict else "MlpPolicy", env=diaries(as_dict=as_dict), **arguments
    )
    model.learn(4 * N_STEPS * 3)
    pages = assert_positions_are_the_steps(model, observations, n_rollouts=4)
    assert pages[:, 1].max() == 59  # the long episode, which began two rollouts before it ended
    first_epoch = pages[: N_STEPS * 3]
    assert not th.equal(first_epoch, first_epoch[first_epoch[:, 2].argsort(stable=True)])


def test_one_environment():
    model, observations = make_recorder(env=Diary(1, (10, 3)))
    model.learn(3 * N_STEPS)
    assert_positions_are_the_steps(model, observations, n_rollouts=3, n_envs=1)


def test_action_masks():
    model, observations = make_recorder(MaskableKLipPPO)
    model.learn(4 * N_STEPS * 3)
    assert_positions_are_the_steps(model, observations, n_rollouts=4)


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("batch_size", [16, 69])
def test_padded_sequences(batch_size, as_dict):
    model, observations = make_recorder(
        RecurrentKLipPPO,
        "MultiInputLstmPolicy" if as_dict else "MlpLstmPolicy",
        env=diaries(as_dict=as_dict),
        batch_size=batch_size,
        policy_kwargs=dict(lstm_hidden_size=4),
    )
    model.learn(4 * N_STEPS * 3)
    assert_positions_are_the_steps(model, observations, n_rollouts=4)
    sizes = [len(batch["page"] if as_dict else batch) for batch in observations]
    assert sum(sizes) > 4 * 2 * N_STEPS * 3  # there was padding


def test_learning_on_without_reset():
    model, observations = make_recorder()
    model.learn(2 * N_STEPS * 3)
    model.learn(2 * N_STEPS * 3, reset_num_timesteps=False)
    pages = assert_positions_are_the_steps(model, observations, n_rollouts=4)
    assert pages[:, 1].max() == 59


def test_learning_again_begins_new_episodes():
    model, observations = make_recorder()
    model.learn(2 * N_STEPS * 3)
    model.learn(2 * N_STEPS * 3)
    pages = assert_positions_are_the_steps(model, observations, n_rollouts=4)
    assert pages[:, 1].max() == 2 * N_STEPS - 1  # the long episode was broken off


def test_another_environment_begins_new_episodes():
    model, observations = make_recorder()
    model.learn(2 * N_STEPS * 3)
    model.set_env(DummyVecEnv([lambda i=i: Diary(i + 11, LENGTHS[i]) for i in range(3)]))
    model.learn(2 * N_STEPS * 3, reset_num_timesteps=False)
    assert_positions_are_the_steps(model, observations, n_rollouts=4)


class StopAt(BaseCallback):
    """Ends the training in the middle of a rollout."""

    def __init__(self, n_calls):
        super().__init__()
        self.stop = n_calls

    def _on_step(self):
        return self.n_calls < self.stop


@pytest.mark.parametrize("stop", [5, 7, 8])  # within an episode, at its last step, at its first step
@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_training_that_was_stopped_within_a_rollout(reset_num_timesteps, stop):
    model, observations = make_recorder(env=Diary(1, (10,)))
    model.learn(10 * N_STEPS, callback=StopAt(N_STEPS + stop))
    assert model.num_timesteps == N_STEPS + stop
    observations.clear()
    model.penalty.positions.clear()
    model.learn(2 * N_STEPS, reset_num_timesteps=reset_num_timesteps)
    if reset_num_timesteps:
        assert_positions_are_the_steps(model, observations, n_rollouts=2, n_envs=1)
        return
    # SB3 forgets the step at which a callback stops, so of the episode that went on, it takes a step for an earlier one
    pages, positions = pages_and_positions(model, observations)
    ever = pages[:, 2]
    begins = ever[(pages[:, 1] == 0) & (ever > ever.min())].min()
    assert begins < ever.min() + 20
    assert th.equal(positions[ever >= begins], pages[ever >= begins, 1])
    assert positions[ever == ever.min()].tolist() == pages[ever == ever.min(), 1].tolist()


@pytest.mark.parametrize("algorithm", [KLipPPO, MaskableKLipPPO])
def test_a_rollout_that_no_update_follows_is_of_no_consequence(algorithm):
    """The first one is stopped at its second step."""
    model, observations = make_recorder(algorithm)
    model.learn(1000, callback=StopAt(2))
    assert not observations and not model.penalty.positions
    model.learn(N_STEPS * 3)
    assert_positions_are_the_steps(model, observations, n_rollouts=1)


def reloaded(model, env, **arguments):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = quiet(type(model).load(file, env=env, device="cpu", **arguments))
    return loaded, watched(loaded)


def test_loading_goes_on_in_the_middle_of_episodes():
    model, _ = make_recorder()
    model.learn(N_STEPS * 3)
    env = model.env
    del model.policy.evaluate_actions  # a closure cannot be saved
    loaded, observations = reloaded(model, env, force_reset=False)
    loaded.learn(2 * N_STEPS * 3, reset_num_timesteps=False)
    pages = assert_positions_are_the_steps(loaded, observations, n_rollouts=2)
    assert pages[:, 2].min() == N_STEPS


@pytest.mark.parametrize("n_envs", [1, 2, 3])
def test_loading_with_another_number_of_environments(n_envs):
    model, _ = make_recorder(env=diaries(2))
    model.learn(2 * N_STEPS)
    del model.policy.evaluate_actions
    loaded, observations = reloaded(model, diaries(n_envs))
    loaded.learn(2 * N_STEPS * n_envs, reset_num_timesteps=False)
    assert_positions_are_the_steps(loaded, observations, n_rollouts=2, n_envs=n_envs)


class WithCounter(RolloutBuffer):
    """A buffer of one's own that builds on SB3's."""

    def reset(self):
        super().reset()
        self.n_minibatches = 0

    def _get_samples(self, batch_inds, env=None):
        self.n_minibatches += 1
        return super()._get_samples(batch_inds, env)


class WithItsOwnGet(RolloutBuffer):
    """A buffer that cuts minibatches in its own way."""

    def get(self, batch_size=None):
        fields = [self.observations, self.actions, self.values, self.log_probs, self.advantages, self.returns]
        flat = [self.to_torch(self.swap_and_flatten(field)) for field in fields]
        for indices in np.array_split(np.random.permutation(len(flat[0])), 4):
            observations, actions, *numbers = (field[indices] for field in flat)
            yield RolloutBufferSamples(observations, actions, *(number.flatten() for number in numbers))


def test_buffer_derived_from_sb3s():
    model, observations = make_recorder(rollout_buffer_class=WithCounter)
    model.learn(2 * N_STEPS * 3)
    assert_positions_are_the_steps(model, observations, n_rollouts=2)
    assert model.rollout_buffer.n_minibatches == len(observations) / 2


def test_buffer_that_does_not_say_what_it_samples():
    model, _ = make_recorder(rollout_buffer_class=WithItsOwnGet)
    initial = state_of(model.policy)
    with pytest.raises(ValueError, match=r"WithItsOwnGet\.get does not call _get_samples"):
        model.learn(N_STEPS * 3)
    assert not differences(model.policy.state_dict(), initial)
    # Without positions it is as good as another
    model = quiet(KLipPPO("MlpPolicy", diaries(), n_steps=N_STEPS, penalty="sigmoid", rollout_buffer_class=WithItsOwnGet))
    initial = state_of(model.policy)
    model.learn(N_STEPS * 3)
    assert differences(model.policy.state_dict(), initial)


def test_early_stopping_leaves_the_buffer_as_it_was():
    model, observations = make_recorder(target_kl=1e-8, learning_rate=1e-2)
    for _ in range(3):
        observations.clear()
        model.penalty.positions.clear()
        model.learn(N_STEPS * 3, reset_num_timesteps=False)
        pages, positions = pages_and_positions(model, observations)
        assert th.equal(positions, pages[:, 1])
        assert len(pages) < N_STEPS * 3
        assert "_get_samples" not in vars(model.rollout_buffer)


def test_position_aware_training_uses_the_positions():
    """With its midpoint beyond every episode it is its early part, before every one its late part."""
    trained = {}
    for name, penalty in {
        "early": make_penalty("none"),
        "late": make_penalty("spo"),
        "early in all episodes": make_penalty("position_aware", early="none", late="spo", midpoint=1e6, width=1),
        "late in all episodes": make_penalty("position_aware", early="none", late="spo", midpoint=0, width=1e-6),
        "in between": make_penalty("position_aware", early="none", late="spo", midpoint=5, width=1),
    }.items():
        model = quiet(KLipPPO("MlpPolicy", Diary(1, (20,)), n_steps=40, batch_size=20, penalty=penalty, device="cpu", seed=1))
        model.learn(80)
        trained[name] = state_of(model.policy)
    assert not differences(trained["early in all episodes"], trained["early"])
    assert differences(trained["in between"], trained["early"])
    assert differences(trained["in between"], trained["late"])
    # Where the position is the midpoint, which is the first step, both parts count
    assert differences(trained["late in all episodes"], trained["late"])
    error = max((trained["late in all episodes"][key] - trained["late"][key]).abs().max() for key in trained["late"])
    assert error < max((trained["early"][key] - trained["late"][key]).abs().max() for key in trained["late"])


@pytest.mark.parametrize("name", ["position_aware", "asymmetric"])
def test_positions_must_be_given_where_they_are_needed(name):
    penalty = make_penalty(name, **({} if name == "position_aware" else {"upper": "position_aware"}))
    assert penalty.uses_positions
    with pytest.raises(ValueError, match=r"position_aware.*needs the positions"):
        penalty.effective_advantage(PenaltyInputs(th.ones(3), th.ones(3), 0.2))

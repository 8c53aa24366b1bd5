"""MaskableKLipPPO is sb3-contrib's MaskablePPO with the hard penalty, and takes its place with every other."""

import inspect
import io

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_klip import MaskableKLipPPO
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

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")

N_ROLLOUTS = 2
#: Ratios leave the band early; the discount is short because rewards are immediate.
DEFAULTS = dict(n_steps=96, batch_size=32, n_epochs=6, learning_rate=1e-2, gamma=0.5, device="cpu", seed=3)


def discrete():
    return InvalidActionEnvDiscrete(dim=8, n_invalid_actions=5, ep_length=20)


def multi_discrete():
    return InvalidActionEnvMultiDiscrete(dims=[3, 4], n_invalid_actions=3, ep_length=20)


def multi_binary():
    return InvalidActionEnvMultiBinary(dims=4, n_invalid_actions=2, ep_length=20)


ENVS = [discrete, multi_discrete, multi_binary]


class Cards(gym.Env):
    """Dictionary observations; the valid actions are the cards in hand, and the highest card is worth most."""

    action_space = spaces.Discrete(6)
    observation_space = spaces.Dict({"hand": spaces.MultiBinary(6), "round": spaces.Box(0.0, 1.0, (1,))})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.round = 0
        return self._deal(), {}

    def step(self, action):
        assert self.hand[action], "not in hand"
        self.round += 1
        return self._deal(), float(action), self.round >= 11, False, {}

    def action_masks(self):
        return self.hand.astype(bool)

    def _deal(self):
        self.hand = np.zeros(6, dtype=np.int8)
        self.hand[self.np_random.choice(6, size=3, replace=False)] = 1
        return {"hand": self.hand.copy(), "round": np.array([self.round / 11], dtype=np.float32)}


def make_model(algorithm, make_env=discrete, n_envs=1, policy="MlpPolicy", **arguments):
    arguments = {**DEFAULTS, "policy_kwargs": dict(net_arch=[16]), **arguments}
    set_random_seed(7)  # these environments draw from NumPy's generator when they are made
    env = DummyVecEnv([make_env] * n_envs)
    for i, space in enumerate(env.get_attr("action_space")):
        space.seed(i)  # and their states come from their action space
    return quiet(algorithm(policy, env, **arguments))


def train_both(*args, learn=None, **arguments):
    original = make_model(MaskablePPO, *args, **arguments)
    expected = updates_of(original, N_ROLLOUTS, **(learn or {}))
    klip = make_model(MaskableKLipPPO, *args, penalty="hard", **arguments)
    updates = updates_of(klip, N_ROLLOUTS, **(learn or {}))
    assert max(values["klip/frac_kill"] for values in updates) > 0
    assert_same_model(klip, original)
    assert_same_logs(updates, expected)
    return klip, original


# The hard penalty


@pytest.mark.parametrize("batch_size", [32, 50, 37])
@pytest.mark.parametrize("make_env", ENVS)
def test_action_spaces_and_batch_sizes(make_env, batch_size):
    train_both(make_env, batch_size=batch_size)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(dict(n_envs=3, n_steps=31, batch_size=40), id="several-environments"),
        pytest.param(dict(clip_range_vf=0.1, batch_size=50), id="clip-range-vf"),
        pytest.param(dict(make_env=multi_discrete, ent_coef=0.02, vf_coef=0.7, batch_size=50), id="coefficients"),
        pytest.param(dict(make_env=multi_binary, clip_range_vf=lambda p: 0.3 * p, vf_coef=0.3), id="clip-range-vf-schedule"),
        pytest.param(dict(normalize_advantage=False, batch_size=37), id="advantages-as-they-are"),
        pytest.param(dict(clip_range=LinearSchedule(0.2, 0.0, 1.0), learning_rate=lambda p: 1e-2 * p), id="schedules"),
        pytest.param(dict(max_grad_norm=0.02, gae_lambda=0.7), id="small-gradient-norm"),
        pytest.param(dict(learn=dict(use_masking=False)), id="without-masks"),
        pytest.param(dict(policy="MultiInputPolicy", make_env=Cards, batch_size=50), id="dictionary-observations"),
    ],
)
def test_options(arguments):
    train_both(**arguments)


def test_a_single_sample_left_over():
    """Its advantage has no standard deviation; the original's parameters become NaN."""
    model = make_model(MaskableKLipPPO, n_steps=33)
    model.learn(66)
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())


def test_early_stopping_stops_as_early():
    klip, original = train_both(target_kl=0.005, n_epochs=20)
    assert klip._n_updates == original._n_updates < 20 * N_ROLLOUTS


def test_arguments_are_those_of_the_original():
    for method in ("__init__", "learn"):
        ours, originals = (inspect.signature(getattr(cls, method)).parameters for cls in (MaskableKLipPPO, MaskablePPO))
        assert list(ours)[: len(originals)] == list(originals)
        for name in originals:
            if name != "tb_log_name":
                assert ours[name].default == originals[name].default, name
        additional = {name: ours[name].default for name in ours if name not in originals}
        assert inspect.Parameter.empty not in additional.values()
        if method == "__init__":
            assert additional["penalty"] == "hard" and additional["penalty_kwargs"] is None


# Every penalty


@pytest.mark.parametrize(
    ["name", "make_env"],
    [*((name, discrete) for name in FAMILY), ("position_aware", Cards), ("kl_adaptive", Cards), ("nested", multi_binary)],
)
def test_every_penalty_trains_saves_and_resumes(name, make_env):
    policy = "MultiInputPolicy" if make_env is Cards else "MlpPolicy"
    model = make_model(MaskableKLipPPO, make_env, 2, policy, n_steps=32, penalty=FAMILY[name])
    initial, log = state_of(model.policy), Break(after_updates=1)
    model.learn(2 * 64, callback=log)
    assert set(differences(model.policy.state_dict(), initial)) == initial.keys()
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())
    assert all(values.keys() >= DIAGNOSTICS for values in log.updates)

    resumed, updates = log.resume(MaskableKLipPPO, 2 * 64)
    assert_same_model(resumed, model)
    assert_same_logs(updates, log.updates[1:], prefix=("train/", "klip/"))
    assert resumed.penalty.spec() == model.penalty.spec()
    assert resumed.penalty.state_dict() == model.penalty.state_dict()


@pytest.mark.parametrize("make_env", ENVS)
def test_measuring_changes_nothing(make_env):
    fixed = make_model(MaskableKLipPPO, make_env, penalty="kl_fixed")
    updates_of(fixed, 2)
    adaptive = make_model(MaskableKLipPPO, make_env, penalty="kl_adaptive", penalty_kwargs=dict(tolerance=1e12))
    updates = updates_of(adaptive, 2)
    assert_same_model(adaptive, fixed)
    assert all(values["klip/kl"] > 0 for values in updates)


@pytest.mark.parametrize("batch_size", [40, 96])
def test_measured_move_is_that_of_the_valid_actions(batch_size):
    model = make_model(MaskableKLipPPO, penalty="kl_adaptive", batch_size=batch_size)
    log = Snapshots()
    model.learn(2 * 96, callback=log)
    old, new = (make_model(MaskableKLipPPO).policy for _ in range(2))
    for i, values in enumerate(log.updates):
        old.load_state_dict(log.before[i])
        new.load_state_dict(log.after[i])
        data = next(log.rollouts[i].get(None))
        valid = data.action_masks.bool()
        assert (valid.sum(dim=1) == 3).all()
        with th.no_grad():
            logits = [
                policy.action_net(policy.mlp_extractor(policy.extract_features(data.observations))[0]) for policy in (old, new)
            ]
            log_p, log_q = (one - one.exp().mul(valid).sum(dim=1, keepdim=True).log() for one in logits)
            moved = th.where(valid, log_p.exp() * (log_p - log_q), 0.0).sum(dim=1).mean().item()
        assert values["klip/kl"] == pytest.approx(moved, rel=1e-3, abs=1e-6)
        assert moved > 1e-4


# In the original's place


def test_prediction_respects_masks():
    model = make_model(MaskableKLipPPO, penalty="sigmoid")
    model.learn(96)
    for action in range(8):
        masks = np.arange(8) == action
        for deterministic in (True, False):
            predicted, state = model.predict(np.array(0), action_masks=masks, deterministic=deterministic)
            assert predicted == action and state is None
    sampled = {int(model.predict(np.array(0), action_masks=np.arange(8) % 2 == 1)[0]) for _ in range(50)}
    assert len(sampled) > 1 and all(action % 2 == 1 for action in sampled)


def test_training_never_takes_an_invalid_action():
    """The environment would refuse it."""
    model = make_model(MaskableKLipPPO, Cards, 2, "MultiInputPolicy", penalty="spo")
    model.learn(2 * 2 * 96)


@pytest.mark.parametrize("name", ["hard", "kl_adaptive", "position_aware"])
def test_action_masker(name):
    """Masks from a function, as for an environment without any."""

    class WithoutMasks(gym.Wrapper):
        def action_masks(self):
            raise AttributeError("masks come from outside")

    make_env = lambda: ActionMasker(WithoutMasks(discrete()), lambda env: env.unwrapped.action_masks())  # noqa: E731
    expected = make_model(MaskableKLipPPO, discrete, penalty=name)
    updates_of(expected, 2)
    model = make_model(MaskableKLipPPO, make_env, penalty=name)
    updates_of(model, 2)
    assert_same_model(model, expected)


def test_environment_without_masks():
    model = quiet(MaskableKLipPPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=32, batch_size=32, device="cpu"))
    with pytest.raises(ValueError, match="does not support action masking"):
        model.learn(32)
    model.learn(32, use_masking=False)


@pytest.mark.parametrize("name", ["hard", "sigmoid", "kl_adaptive"])
def test_it_learns(name):
    """Chance is right in one of three cases."""
    model = make_model(MaskableKLipPPO, n_steps=256, batch_size=64, penalty=name)
    model.learn(4 * 256)
    mean_reward, _ = evaluate_policy(model, DummyVecEnv([discrete]), n_eval_episodes=10, warn=False)
    assert mean_reward > 0.8 * 20


def test_evaluation_callback(tmp_path):
    model = make_model(MaskableKLipPPO, penalty="sapo", penalty_kwargs=dict(tau_pos=2.0))
    callback = MaskableEvalCallback(
        DummyVecEnv([discrete]), eval_freq=48, n_eval_episodes=2, best_model_save_path=str(tmp_path), warn=False
    )
    model.learn(96, callback=callback)
    assert callback.best_mean_reward > -np.inf
    best = MaskableKLipPPO.load(tmp_path / "best_model", device="cpu")
    assert best.penalty.spec() == model.penalty.spec()


@pytest.mark.parametrize("make_env", ENVS)
def test_save_and_load(make_env):
    model = make_model(MaskableKLipPPO, make_env, penalty="linear_ramp", penalty_kwargs=dict(softness="lin_0.2"))
    model.learn(96)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = MaskableKLipPPO.load(file, env=model.env, device="cpu")
    assert loaded.penalty.spec() == model.penalty.spec()
    assert_same_model(loaded, model)
    observation = model.env.reset()
    masks = np.stack(model.env.env_method("action_masks"))
    actions = [one.predict(observation, action_masks=masks, deterministic=True)[0] for one in (model, loaded)]
    np.testing.assert_array_equal(*actions)
    quiet(loaded).learn(96)


def test_a_model_of_the_original_goes_on_here():
    """Its parameters fit."""
    original = make_model(MaskablePPO)
    original.learn(96)
    klip = make_model(MaskableKLipPPO, penalty="spo")
    klip.set_parameters(original.get_parameters())
    assert_same_model(klip, original)
    klip.learn(96)

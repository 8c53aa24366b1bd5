"""Every penalty of the family trains, is saved, and goes on after loading as if nothing had happened."""

import functools
import io
import json
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_klip import KLipPPO
from sb3_klip.penalties import GatePenalty, available_penalties, make_penalty
from tests.runs import DIAGNOSTICS, FAMILY, Break, assert_same_logs, assert_same_model, differences, quiet, state_of

ENVS = ["CartPole-v1", "Pendulum-v1"]
N_ROLLOUTS = 3
#: The learning rate makes ratios leave the band early.
ARGUMENTS = dict(
    n_steps=64, batch_size=32, n_epochs=8, learning_rate=1e-2, policy_kwargs=dict(net_arch=[16]), device="cpu", seed=5
)


def make_model(penalty, env_id, **arguments):
    return quiet(KLipPPO("MlpPolicy", gym.make(env_id), penalty=penalty, **{**ARGUMENTS, **arguments}))


@functools.cache
def run(name, env_id):
    """A model that was trained for a few rollouts, its parameters before, and all that it was after the first."""
    model = make_model(FAMILY[name], env_id)
    initial, log = state_of(model.policy), Break(after_updates=1)
    model.learn(N_ROLLOUTS * model.n_steps, callback=log)
    return model, initial, log


every_penalty = pytest.mark.parametrize("name", FAMILY)
every_env = pytest.mark.parametrize("env_id", ENVS)


@every_env
@every_penalty
def test_trains(name, env_id):
    model, initial, log = run(name, env_id)
    trained = model.policy.state_dict()
    assert all(th.isfinite(tensor).all() for tensor in trained.values())
    assert set(differences(trained, initial)) == initial.keys()
    assert len(log.updates) == N_ROLLOUTS
    for values in log.updates:
        assert values.keys() >= DIAGNOSTICS
        assert all(np.isfinite(value) for key, value in values.items() if key.startswith("klip/"))
        fractions = [values[f"klip/frac_{which}"] for which in ("in_band", "kill", "pass")]
        assert min(fractions) >= 0 and sum(fractions) == pytest.approx(1)


@every_env
def test_shapes_differ_in_what_they_learn(env_id):
    """Or the penalty would not be the one that trains. ``dual_clip`` is ``hard`` until a ratio passes its bound."""
    trained = {name: run(name, env_id)[0].policy.state_dict() for name in FAMILY}
    twins = {(one, two) for one in trained for two in trained if one < two and not differences(trained[one], trained[two])}
    of_hard = {"asymmetric", "hard", "position_aware"}
    assert {pair for pair in twins if "dual_clip" not in pair} == {(a, b) for a in of_hard for b in of_hard if a < b}
    # Samples must have been killed for this to say anything
    assert max(values["klip/frac_kill"] for values in run("hard", env_id)[2].updates) > 0.05


@every_env
@every_penalty
def test_save_and_load(name, env_id):
    model, _, _ = run(name, env_id)
    file = io.BytesIO()
    model.save(file)
    loaded = KLipPPO.load(file, device="cpu")
    assert loaded.penalty is not model.penalty
    assert type(loaded.penalty) is type(model.penalty)
    assert loaded.penalty.spec() == model.penalty.spec()
    assert loaded.penalty.state_dict() == model.penalty.state_dict()
    assert not differences(loaded.policy.state_dict(), model.policy.state_dict())
    observations = np.random.default_rng(0).normal(size=(50, *model.observation_space.shape)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], expected)


@every_penalty
def test_saved_file_shows_the_penalty_in_plain_json(name):
    model, _, _ = run(name, "CartPole-v1")
    file = io.BytesIO()
    model.save(file)
    stored = json.loads(zipfile.ZipFile(file).read("data"))["penalty"]
    assert stored == {"spec": model.penalty.spec(), "state": model.penalty.state_dict()}
    assert make_penalty(stored["spec"]).spec() == model.penalty.spec()


@every_env
@every_penalty
def test_resumed_run_is_the_unbroken_one(name, env_id):
    unbroken, _, log = run(name, env_id)
    resumed, updates = log.resume(KLipPPO, N_ROLLOUTS * unbroken.n_steps)
    assert resumed.num_timesteps == unbroken.num_timesteps == N_ROLLOUTS * unbroken.n_steps
    assert_same_model(resumed, unbroken)
    assert resumed.penalty.state_dict() == unbroken.penalty.state_dict()
    assert_same_logs(updates, log.updates[1:], prefix=("train/", "klip/"))


@every_env
@pytest.mark.parametrize("name", ["kl_adaptive-narrow", "kl_adaptive-k3"])
def test_adapted_coefficient_goes_on(name, env_id):
    """At the break it is not what a new penalty begins with, and it moves on after it."""
    unbroken, _, log = run(name, env_id)
    saved = log.penalty_state["beta"]
    assert saved != make_penalty(FAMILY[name]).state_dict()["beta"]
    resumed, updates = log.resume(KLipPPO, N_ROLLOUTS * unbroken.n_steps)
    assert updates[0]["klip/beta"] == saved
    assert resumed.penalty.state_dict()["beta"] == unbroken.penalty.state_dict()["beta"] != saved


def test_a_run_can_go_on_with_another_penalty():
    model, _, _ = run("kl_adaptive", "CartPole-v1")
    file = io.BytesIO()
    model.save(file)
    for given, wanted in [
        (dict(penalty="spo"), make_penalty("spo")),
        (dict(penalty="sigmoid", penalty_kwargs=dict(softness=0.3)), make_penalty("sigmoid", softness=0.3)),
        (dict(penalty={"name": "leaky", "alpha": 0.5}), make_penalty("leaky", alpha=0.5)),
    ]:
        file.seek(0)
        loaded = quiet(KLipPPO.load(file, env=gym.make("CartPole-v1"), device="cpu", **given))
        assert loaded.penalty.spec() == wanted.spec()
        loaded.learn(loaded.n_steps)


class Quadratic(GatePenalty):
    """A shape of one's own: one method, not registered."""

    def gate(self, inputs):
        return self.distance(inputs).clamp(min=0.0).square()


def test_a_shape_of_ones_own_trains_and_resumes():
    model, log = make_model(Quadratic(clip_range=0.1), "CartPole-v1"), Break(after_updates=1)
    model.learn(2 * model.n_steps, callback=log)
    assert max(values["klip/gate_mean"] for values in log.updates) > 0
    resumed, _ = log.resume(KLipPPO, 2 * model.n_steps)
    assert isinstance(resumed.penalty, Quadratic)
    assert resumed.penalty.spec() == {"name": f"{Quadratic.__module__}.Quadratic", "clip_range": 0.1}
    assert_same_model(resumed, model)
    assert "Quadratic" not in "".join(available_penalties())


def test_a_schedule_that_json_cannot_hold_is_saved_all_the_same():
    """As SB3 does with a clip_range that is a function."""
    softness = lambda progress: 0.1 + 0.2 * progress  # noqa: E731
    model, log = make_model(make_penalty("sigmoid", softness=softness), "CartPole-v1"), Break(after_updates=1)
    model.learn(2 * model.n_steps, callback=log)
    resumed, _ = log.resume(KLipPPO, 2 * model.n_steps)
    assert resumed.penalty.softness(0.5) == softness(0.5)
    assert_same_model(resumed, model)


@pytest.mark.slow
@every_env
@every_penalty
def test_longer_training_stays_finite(name, env_id):
    """With steps so large that ratios leave all bounds."""
    model = make_model(FAMILY[name], env_id, n_steps=256, learning_rate=0.03, n_epochs=10)
    model.learn(5 * model.n_steps)
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())

"""Every penalty of the family trains, is saved, and goes on after loading as if nothing had happened."""

import copy
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
    stored = json.loads(zipfile.ZipFile(file).read("data"))
    assert stored["penalty"] == model.penalty.spec()
    assert make_penalty(stored["penalty"]).spec() == model.penalty.spec()
    assert stored["penalty_state"]["values"] == model.penalty.state_dict()


@every_env
@every_penalty
def test_resumed_run_is_the_unbroken_one(name, env_id):
    unbroken, _, log = run(name, env_id)
    resumed, updates = log.resume(KLipPPO, N_ROLLOUTS * unbroken.n_steps)
    assert resumed.num_timesteps == unbroken.num_timesteps == N_ROLLOUTS * unbroken.n_steps
    assert_same_model(resumed, unbroken)
    assert resumed.penalty.state_dict() == unbroken.penalty.state_dict()
    assert_same_logs(updates, log.updates[1:], prefix=("train/", "klip/"))


@pytest.mark.parametrize("name", ["sigmoid", "kl_adaptive-narrow", "kl_adaptive-k3", "nested"])
def test_training_in_two_parts_with_a_file_between_them(name):
    """And with gSDE, whose noise is drawn anew with every rollout."""

    def first_part():
        model = make_model(FAMILY[name], "Pendulum-v1", use_sde=True, sde_sample_freq=16)
        model.learn(2 * model.n_steps)
        return model, copy.deepcopy(model.env), th.get_rng_state(), np.random.get_state()

    unbroken, *_ = first_part()
    unbroken.learn(2 * unbroken.n_steps, reset_num_timesteps=False)
    model, env, torch_state, numpy_state = first_part()
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = quiet(KLipPPO.load(file, env=env, device="cpu", force_reset=False))
    th.set_rng_state(torch_state)
    np.random.set_state(numpy_state)
    loaded.learn(2 * loaded.n_steps, reset_num_timesteps=False)
    assert_same_model(loaded, unbroken)
    assert loaded.penalty.state_dict() == unbroken.penalty.state_dict()


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


def reloaded(model, **given):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return quiet(KLipPPO.load(file, env=gym.make("CartPole-v1"), device="cpu", **given))


@pytest.mark.parametrize(
    ["given", "wanted"],
    [
        (dict(penalty="spo"), make_penalty("spo")),
        (dict(penalty="sigmoid", penalty_kwargs=dict(softness=0.3)), make_penalty("sigmoid", softness=0.3)),
        (dict(penalty={"name": "leaky", "alpha": 0.5}), make_penalty("leaky", alpha=0.5)),
        (dict(penalty=make_penalty("dual_clip", dual_clip=2)), make_penalty("dual_clip", dual_clip=2)),
        (
            dict(penalty_kwargs=dict(divergence="sample")),
            make_penalty({**FAMILY["kl_adaptive-narrow"], "divergence": "sample"}),
        ),
    ],
)
def test_a_run_can_go_on_with_another_penalty(given, wanted):
    model, _, _ = run("kl_adaptive-narrow", "CartPole-v1")
    loaded = reloaded(model, **given)
    assert loaded.penalty.spec() == wanted.spec()
    # A new penalty has learned nothing yet
    assert loaded.penalty.state_dict() == wanted.state_dict()
    before = state_of(loaded.policy)
    loaded.learn(loaded.n_steps)
    assert differences(loaded.policy.state_dict(), before)


def test_what_was_learned_goes_on_where_the_same_penalty_is_asked_for():
    """As the RL Zoo does, which gives all arguments once more to continue a run."""
    model, _, _ = run("kl_adaptive-k3", "CartPole-v1")
    learned = model.penalty.state_dict()
    assert learned != make_penalty(FAMILY["kl_adaptive-k3"]).state_dict()
    assert reloaded(model).penalty.state_dict() == learned
    assert reloaded(model, penalty=FAMILY["kl_adaptive-k3"]).penalty.state_dict() == learned
    assert reloaded(model, penalty={**FAMILY["kl_adaptive-k3"], "target": 0.5}).penalty.state_dict() == {"beta": 0.5}


def test_wrong_penalties_are_refused_when_loading():
    model, _, _ = run("hard", "CartPole-v1")
    with pytest.raises(ValueError, match="unknown penalty 'sigmod'"):
        reloaded(model, penalty="sigmod")
    with pytest.raises(ValueError, match="softness must be > 0"):
        reloaded(model, penalty="sigmoid", penalty_kwargs=dict(softness=-1))


def test_a_penalty_can_be_changed_between_trainings():
    model = make_model("hard", "CartPole-v1")
    model.learn(64)
    model.penalty = {"name": "sigmoid", "softness": 0.2}
    assert model.penalty.spec() == make_penalty("sigmoid", softness=0.2).spec()
    model.learn(64, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="unknown penalty"):
        model.penalty = "sigmod"
    assert model.penalty.spec()["name"] == "sigmoid"
    assert reloaded(model).penalty.spec() == model.penalty.spec()


def test_models_that_were_given_the_same_penalty_do_not_teach_each_other():
    shared = make_penalty(FAMILY["kl_adaptive-narrow"])
    expected = run("kl_adaptive-narrow", "CartPole-v1")[0]
    for _ in range(2):
        model = make_model(shared, "CartPole-v1")
        model.learn(N_ROLLOUTS * model.n_steps)
        assert_same_model(model, expected)
    assert shared.state_dict() == make_penalty(FAMILY["kl_adaptive-narrow"]).state_dict()


@pytest.mark.parametrize("name", ["hard", "kl_adaptive", "nested"])
def test_saving_changes_nothing(name):
    """A run that saves itself all the time is the same run."""
    expected, _, _ = run(name, "CartPole-v1")
    model = make_model(FAMILY[name], "CartPole-v1")
    penalty = model.penalty
    model.learn(N_ROLLOUTS * model.n_steps, callback=lambda *_: model.save(io.BytesIO()) or True)
    assert_same_model(model, expected)
    assert model.penalty is penalty


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


def test_what_was_learned_is_saved_with_such_a_schedule_too():
    penalty = make_penalty("kl_adaptive", target=lambda progress: 1e-6 * (1 + progress))
    model, log = make_model(penalty, "CartPole-v1"), Break(after_updates=1)
    model.learn(3 * model.n_steps, callback=log)
    assert log.penalty_state == {"beta": 2.0}
    resumed, _ = log.resume(KLipPPO, 3 * model.n_steps)
    assert_same_model(resumed, model)
    assert resumed.penalty.state_dict() == model.penalty.state_dict() == {"beta": 8.0}


@pytest.mark.slow
@every_env
@every_penalty
def test_longer_training_stays_finite(name, env_id):
    """With steps so large that ratios leave all bounds."""
    model = make_model(FAMILY[name], env_id, n_steps=256, learning_rate=0.03, n_epochs=10)
    model.learn(5 * model.n_steps)
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())

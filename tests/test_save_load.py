"""A saved model holds its penalty as readable text, and goes on where it was."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule, set_random_seed

from sb3_klip import KLipPPO
from sb3_klip.penalties import GatePenalty, Number, PenaltyInputs
from tests.envs import Clock, NoisyRewards
from tests.runs import UpdateValues, assert_same_model, differences

SMALL = dict(n_steps=64, batch_size=32, n_epochs=4, learning_rate=1e-2, seed=0, device="cpu")
INPUTS = PenaltyInputs(th.tensor([0.5, 0.9, 1.0, 1.22, 1.5]), th.tensor([-1.0, 1.0, -1.0, 2.0, 1.0]), clip_range=0.2)


class Ramp(GatePenalty):
    """A shape of a user's own, which is not registered."""

    steepness = Number(3.0, above=0.0)

    def gate(self, inputs):
        return (self.steepness(inputs.progress_remaining) * self.distance(inputs)).clamp(0.0, 1.0)


PENALTIES = {
    "hard": "hard",
    "none": "none",
    "parameter": {"name": "sigmoid", "softness": 0.3},
    "zoo schedule": {"name": "sigmoid", "softness": "lin_0.3"},
    "linear schedule": {"name": "sigmoid", "softness": LinearSchedule(0.3, 0.1, 0.5)},
    "own clip range": {"name": "hard", "clip_range": 0.1},
    "own class": {"name": f"{__name__}.Ramp", "steepness": 7.0},
    "combination": {"name": "asymmetric", "upper": {"name": "sigmoid", "softness": 0.2}, "lower": "none"},
}


def env(seed=0):
    noisy = NoisyRewards(spaces.Discrete(4))
    noisy.reset(seed=seed)
    return noisy


def small_model(algorithm=KLipPPO, **arguments):
    return algorithm("MlpPolicy", env(), **{**SMALL, **arguments})


def stored(path):
    """What SB3 keeps of a model beside its tensors."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("data"))


def predictions(model):
    observations = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    return model.predict(observations, deterministic=True)[0]


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
def test_loaded_model_is_the_saved_one(penalty, tmp_path):
    model = small_model(penalty=penalty).learn(64)
    model.save(tmp_path / "model")
    loaded = KLipPPO.load(tmp_path / "model", env=env())
    assert_same_model(loaded, model)
    assert np.array_equal(predictions(loaded), predictions(model))
    assert type(loaded.penalty) is type(model.penalty)
    assert loaded.penalty.spec() == model.penalty.spec()
    for progress_remaining in (1.0, 0.6, 0.0):
        inputs = PenaltyInputs(INPUTS.ratio, INPUTS.advantages, INPUTS.clip_range, None, progress_remaining)
        assert th.equal(loaded.penalty.effective_advantage(inputs), model.penalty.effective_advantage(inputs))
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 128 and differences(loaded.policy.state_dict(), model.policy.state_dict())


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
def test_penalty_is_plain_json_in_the_file(penalty, tmp_path):
    model = small_model(penalty=penalty)
    model.save(tmp_path / "model.zip")
    data = stored(tmp_path / "model.zip")
    assert data["penalty"] == model.penalty.spec()
    state = data["penalty_state"]
    assert state["spec"] == model.penalty.spec()
    assert state["values"] == model.penalty.state_dict()
    assert type(model.penalty).__module__ in state["modules"]
    assert ":serialized:" not in json.dumps([data["penalty"], data["penalty_state"]])


def test_state_of_the_penalty_is_plain_json_and_comes_back(tmp_path):
    model = small_model(penalty="kl_adaptive", penalty_kwargs=dict(target=1e-4)).learn(128)
    now = model.penalty.coefficient(1.0)
    assert now > 1.0  # It has adapted
    model.save(tmp_path / "model.zip")
    assert stored(tmp_path / "model.zip")["penalty_state"]["values"] == {"beta": now}
    assert KLipPPO.load(tmp_path / "model").penalty.coefficient(1.0) == now


def test_saving_does_not_change_the_model(tmp_path):
    model, untouched = small_model(penalty="sigmoid").learn(64), small_model(penalty="sigmoid").learn(64)
    penalty = model.penalty
    model.save(tmp_path / "model")
    assert model.penalty is penalty
    for one in (model, untouched):
        set_random_seed(5)
        one.learn(64, reset_num_timesteps=False)
    assert_same_model(model, untouched)


class BrokenFile(io.BytesIO):
    """A disk that is full."""

    def write(self, *args):
        raise OSError("no space left on device")


def test_penalty_survives_an_error_while_saving():
    model = small_model(penalty="sigmoid")
    penalty = model.penalty
    with pytest.raises(OSError, match="no space left"):
        model.save(BrokenFile())
    assert model.penalty is penalty
    model.learn(64)


def test_model_can_be_saved_to_a_buffer_and_loaded_without_environment():
    model, buffer = small_model(penalty="sigmoid").learn(64), io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    loaded = KLipPPO.load(buffer)
    assert np.array_equal(predictions(loaded), predictions(model))
    assert loaded.penalty.spec() == model.penalty.spec()


def test_include_and_exclude(tmp_path):
    model = small_model(penalty="sigmoid")
    model.save(tmp_path / "model.zip", exclude=["penalty", "seed"])
    entries = stored(tmp_path / "model.zip")
    assert "penalty" not in entries and "seed" not in entries
    assert KLipPPO.load(tmp_path / "model").penalty.name == "hard"


@pytest.mark.parametrize(
    ["arguments", "spec"],
    [
        (dict(penalty="none"), {"name": "none", "clip_range": None}),
        (
            dict(penalty="sigmoid", penalty_kwargs=dict(softness="lin_0.2")),
            {"name": "sigmoid", "softness": "lin_0.2", "clip_range": None},
        ),
        (dict(penalty={"name": "hard", "clip_range": 0.1}), {"name": "hard", "clip_range": 0.1}),
        (dict(penalty=Ramp(steepness=2.0)), {"name": f"{__name__}.Ramp", "steepness": 2.0, "clip_range": None}),
    ],
)
def test_another_penalty_can_be_chosen_when_loading(arguments, spec, tmp_path):
    model = small_model(penalty="linear_ramp", penalty_kwargs=dict(softness=0.4)).learn(64)
    model.save(tmp_path / "model")
    loaded = KLipPPO.load(tmp_path / "model", env=env(), **arguments)
    assert_same_model(loaded, model)
    assert loaded.penalty.spec() == spec
    loaded.learn(64)
    # And it is the other one that is saved next
    loaded.save(tmp_path / "again")
    assert KLipPPO.load(tmp_path / "again").penalty.spec() == spec


@pytest.mark.parametrize(
    ["arguments", "sentence"],
    [
        (dict(penalty="hrad"), "unknown penalty 'hrad'.*'hard'"),
        (dict(penalty="hard", penalty_kwargs=dict(softness=0.1)), "hard.*'softness'"),
        (dict(penalty="sigmoid", penalty_kwargs=dict(softness=-1)), "softness must be > 0"),
    ],
)
def test_a_bad_penalty_is_refused_when_loading(arguments, sentence, tmp_path):
    small_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match=sentence):
        KLipPPO.load(tmp_path / "model", **arguments)


def test_model_of_a_class_that_is_not_to_be_found_says_what_to_import(tmp_path):
    class Local(Ramp):
        pass

    small_model(penalty=Local()).save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["data"] = entries["data"].replace(Local.name.encode(), b"my_gates.Local")
    with zipfile.ZipFile(tmp_path / "moved.zip", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"my_gates\.Local.*import the module"):
        KLipPPO.load(tmp_path / "moved.zip")
    assert KLipPPO.load(tmp_path / "moved.zip", penalty="none").penalty.name == "none"


def test_schedule_that_is_a_python_function_is_saved_too(tmp_path):
    model = small_model(penalty="sigmoid", penalty_kwargs=dict(softness=lambda progress: 0.1 + 0.2 * progress)).learn(64)
    model.save(tmp_path / "model.zip")
    loaded = KLipPPO.load(tmp_path / "model.zip", env=env())
    assert loaded.penalty.softness(1.0) == pytest.approx(0.3) and loaded.penalty.softness(0.0) == pytest.approx(0.1)
    loaded.learn(64)


def test_model_of_sb3s_ppo_can_be_loaded(tmp_path):
    ppo = small_model(PPO).learn(64)
    ppo.save(tmp_path / "ppo")
    klip = KLipPPO.load(tmp_path / "ppo", env=env(1))
    assert klip.penalty.name == "hard"
    assert_same_model(klip, ppo)
    # And training goes on as PPO's does
    again = PPO.load(tmp_path / "ppo", env=env(1))
    for model in (klip, again):
        set_random_seed(5)
        model.learn(128, reset_num_timesteps=False)
    assert_same_model(klip, again)
    assert KLipPPO.load(tmp_path / "ppo", penalty="none").penalty.name == "none"


def test_sb3s_ppo_can_load_ours(tmp_path):
    klip = small_model(penalty="sigmoid").learn(64)
    klip.save(tmp_path / "klip")
    ppo = PPO.load(tmp_path / "klip", env=env())
    assert type(ppo) is PPO
    assert_same_model(ppo, klip)
    ppo.learn(64)


@pytest.mark.parametrize("as_file", [True, False])
def test_parameters_can_be_set_into_ppo_and_back(as_file, tmp_path):
    klip, ppo = small_model(penalty="sigmoid").learn(64), small_model(PPO, seed=1)
    assert differences(klip.policy.state_dict(), ppo.policy.state_dict())
    klip.save(tmp_path / "klip")
    ppo.set_parameters(tmp_path / "klip.zip" if as_file else klip.get_parameters())
    assert_same_model(ppo, klip)
    fresh = small_model(penalty="none", seed=2)
    fresh.set_parameters(ppo.get_parameters())
    assert_same_model(fresh, klip)
    # Parameters are the policy's and the optimizer's: the penalty stays
    assert fresh.penalty.name == "none"
    assert fresh.policy.optimizer.state_dict()["state"].keys() == klip.policy.optimizer.state_dict()["state"].keys()


@pytest.mark.parametrize("penalty", ["hard", "none", "kl_adaptive", "position_aware"])
def test_resumed_run_is_the_unbroken_one(penalty, tmp_path):
    """In an environment without chance, broken where an episode ends, with the same random numbers after it."""
    arguments = {**SMALL, "learning_rate": LinearSchedule(1e-2, 1e-3, 1.0), "seed": None}
    set_random_seed(3)
    unbroken = KLipPPO("MlpPolicy", Clock(16), penalty=penalty, **arguments).learn(128)
    unbroken.save(tmp_path / "model")
    resumed = KLipPPO.load(tmp_path / "model", env=Clock(16))
    logs = []
    for model in (unbroken, resumed):
        set_random_seed(4)
        log = UpdateValues()
        model.learn(128, reset_num_timesteps=False, callback=log)
        logs.append(log.updates)
    assert resumed.num_timesteps == unbroken.num_timesteps == 256
    assert_same_model(resumed, unbroken)
    assert len(logs[0]) == 2 and logs[0] == logs[1]

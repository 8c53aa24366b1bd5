"""Penalties made of two others are the one or the other, sample by sample, to the last bit."""

import io
import json

import gymnasium as gym
import pytest
import torch as th
import yaml
from torch.testing import assert_close

from sb3_klip import KLipPPO
from sb3_klip.penalties import GatePenalty, Penalty, PenaltyInputs, available_penalties, make_penalty
from tests.envs import Clock
from tests.runs import DIAGNOSTICS, assert_same_logs, assert_same_model, differences, quiet, state_of, updates_of

SAMPLED = {"kl_fixed": "k3", "kl_adaptive": "k3"}
#: Shapes as parts: none of them made of parts, the scalar ones with a divergence that acts through the ratio.
PARTS = [name for name in available_penalties() if name not in ("asymmetric", "position_aware")]
#: What a penalty says of a minibatch.
SAYS = ["beta", "effective_advantage", "kl_coef", "surrogate"]


def part(name):
    return {"name": name, **({"divergence": SAMPLED[name]} if name in SAMPLED else {})}


def make_model(penalty, env=None, **arguments):
    defaults = dict(n_steps=64, batch_size=32, n_epochs=6, learning_rate=1e-2, device="cpu", seed=2)
    env = gym.make("CartPole-v1") if env is None else env
    arguments = {**defaults, "policy_kwargs": dict(net_arch=[16]), **arguments}
    return quiet(KLipPPO("MlpPolicy", env, penalty=penalty, **arguments))


def grid(n_positions=1):
    """Ratios on both sides of 1 and 1 itself, advantages of both signs and 0; positions from 0 on in steps of 10."""
    ratio = th.tensor([0.2, 0.7, 0.85, 1.0, 1.1, 1.25, 4.0], dtype=th.float64)
    advantages = th.tensor([-1.5, 0.0, 0.8], dtype=th.float64)
    positions = 10.0 * th.arange(n_positions, dtype=th.float64)
    points = th.meshgrid(ratio, advantages, positions, indexing="ij")
    ratio, advantages, positions = (axis.flatten() for axis in points)
    return PenaltyInputs(ratio, advantages, 0.2, positions, progress_remaining=0.4)


def assert_routed(combination, upper, lower, inputs, above, below):
    """By hand: one part on one mask, the other on the other, their mean on what is left."""
    assert above.any() and below.any() and not (above & below).any()
    between = ~(above | below)
    for method in SAYS:
        mixed, first, second = (getattr(penalty, method)(inputs) for penalty in (combination, upper, lower))
        assert mixed.shape == inputs.ratio.shape
        assert th.equal(mixed[above], first[above]), method
        assert th.equal(mixed[below], second[below]), method
        assert_close(mixed[between], (first[between] + second[between]) / 2)
    # The gate is found from the effective advantage, which costs digits
    mixed, first, second = (penalty.gate(inputs) for penalty in (combination, upper, lower))
    assert_close(mixed[above], first[above])
    assert_close(mixed[below], second[below])


@pytest.mark.parametrize("lower", ["hard", "spo", "kl_fixed"])
@pytest.mark.parametrize("upper", PARTS)
def test_asymmetric_by_ratio(upper, lower):
    inputs = grid()
    combination = make_penalty("asymmetric", upper=part(upper), lower=part(lower))
    above, below = inputs.ratio > 1, inputs.ratio < 1
    assert_routed(combination, make_penalty(part(upper)), make_penalty(part(lower)), inputs, above, below)


@pytest.mark.parametrize("lower", ["hard", "spo", "kl_fixed"])
@pytest.mark.parametrize("upper", PARTS)
def test_asymmetric_by_advantage(upper, lower):
    inputs = grid()
    combination = make_penalty("asymmetric", upper=part(upper), lower=part(lower), by="advantage")
    above, below = inputs.advantages > 0, inputs.advantages < 0
    assert_routed(combination, make_penalty(part(upper)), make_penalty(part(lower)), inputs, above, below)


def test_asymmetric_example_by_hand():
    """``leaky`` above keeps 30 % of the gradient, ``rollback`` below turns 50 % of it round."""
    inputs = PenaltyInputs(
        ratio=th.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 0.9, 1.0]),
        advantages=th.tensor([2.0, -2.0, 2.0, -2.0, 2.0, -2.0, -2.0]),
        clip_range=0.2,
    )
    upper, lower = make_penalty("leaky", alpha=0.3), {"name": "rollback", "alpha": 0.5}
    by_ratio = make_penalty("asymmetric", upper=upper, lower=lower)
    assert_close(by_ratio.effective_advantage(inputs), th.tensor([0.6, -2.0, 2.0, 1.0, 2.0, -2.0, -2.0]))
    by_advantage = make_penalty("asymmetric", upper=upper, lower=lower, by="advantage")
    assert_close(by_advantage.effective_advantage(inputs), th.tensor([0.6, -2.0, 2.0, 1.0, 2.0, -2.0, -2.0]))
    turned = make_penalty("asymmetric", upper=lower, lower=upper)
    assert_close(turned.effective_advantage(inputs), th.tensor([-1.0, -2.0, 2.0, -0.6, 2.0, -2.0, -2.0]))


def test_where_the_ratio_is_exactly_one_both_sides_count():
    """As in the first minibatch of every update."""
    inputs = PenaltyInputs(th.ones(2), th.tensor([1.0, -4.0]), 0.2)
    combination = make_penalty("asymmetric", upper={"name": "pspo", "alpha": 0.6}, lower={"name": "pspo", "alpha": 0.2})
    assert_close(combination.effective_advantage(inputs), th.tensor([0.6, -2.4]))
    next_floats = PenaltyInputs(th.nextafter(th.ones(2), th.tensor([0.0, 2.0])), th.ones(2), 0.2)
    assert_close(combination.effective_advantage(next_floats), th.tensor([0.8, 0.4]))


def test_a_sum_of_divergences_is_split_too():
    """Analytic KL above 1 only: its coefficient is 0 for the other samples."""
    inputs = grid()
    combination = make_penalty("asymmetric", upper={"name": "kl_fixed", "beta": 3}, lower="hard")
    assert combination.kl_coef(inputs).tolist() == [0.0 if w < 1 else 1.5 if w == 1 else 3.0 for w in inputs.ratio]


@pytest.mark.parametrize("name", PARTS)
def test_position_aware_far_from_its_midpoint(name):
    inputs = grid(n_positions=20)
    early, late = make_penalty(part(name)), make_penalty("leaky", alpha=0.5)
    parts = dict(early=early, late=late, width=5)
    before = make_penalty("position_aware", midpoint=1e6, **parts)
    after = make_penalty("position_aware", midpoint=0, **parts)
    far = inputs.positions >= 190
    for method in SAYS:
        assert th.equal(getattr(before, method)(inputs), getattr(early, method)(inputs)), method
        assert_close(getattr(after, method)(inputs)[far], getattr(late, method)(inputs)[far], rtol=1e-9, atol=1e-9)


def test_position_aware_by_hand():
    """One width past the midpoint the late part counts σ(1) = 73 %."""
    inputs = PenaltyInputs(
        ratio=th.full((5,), 1.5, dtype=th.float64),
        advantages=th.full((5,), 2.0, dtype=th.float64),
        clip_range=0.2,
        positions=th.tensor([80.0, 90.0, 100.0, 110.0, 120.0]),
    )
    penalty = make_penalty("position_aware", early="none", late="hard", midpoint=100, width=10)
    late = th.tensor([0.11920292, 0.26894142, 0.5, 0.73105858, 0.88079708], dtype=th.float64)
    # β is 0 early and -w·Â = -3 late
    assert_close(penalty.beta(inputs), -3 * late, rtol=1e-6, atol=0)
    assert_close(penalty.effective_advantage(inputs), 2 - 2 * late, rtol=1e-6, atol=0)
    assert_close(penalty.surrogate(inputs), 3 - 0.6 * late, rtol=1e-6, atol=0)


def test_position_aware_with_schedules():
    inputs = PenaltyInputs(th.full((2,), 1.5), th.ones(2), 0.2, th.tensor([40.0, 60.0]), progress_remaining=0.5)
    penalty = make_penalty("position_aware", early="none", late="hard", midpoint="lin_100", width={"start": 1, "end": 0})
    # The midpoint is 50 by now, and the width is 1/2
    assert_close(penalty.gate(inputs), th.tensor([0.0, 1.0]), rtol=0, atol=1e-6)
    at_the_end = PenaltyInputs(th.full((2,), 1.5), th.ones(2), 0.2, th.tensor([0.0, 1.0]), progress_remaining=0.0)
    assert_close(penalty.gate(at_the_end), th.tensor([0.5, 1.0]))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(
    "combination",
    [
        {"name": "asymmetric"},
        {"name": "asymmetric", "by": "advantage"},
        {"name": "position_aware"},
        {
            "name": "position_aware",
            "early": "asymmetric",
            "late": {"name": "asymmetric", "upper": "position_aware"},
            "width": 3,
        },
    ],
)
def test_parts_that_are_all_hard_are_hard(combination, env_id):
    expected = make_model("hard", gym.make(env_id))
    expected_updates = updates_of(expected, 3)
    model = make_model(combination, gym.make(env_id))
    updates = updates_of(model, 3)
    assert_same_model(model, expected)
    assert_same_logs(updates, expected_updates)
    assert_same_logs(updates, expected_updates, prefix="klip/")
    assert expected_updates[-1]["klip/frac_kill"] > 0


def test_asymmetric_of_two_and_the_same_by_the_other_rule():
    """On the kill set a ratio above 1 goes with a positive advantage, so gates that touch nothing else agree."""
    trained = []
    for by in ("ratio", "advantage"):
        model = make_model({"name": "asymmetric", "upper": "leaky", "lower": "rollback", "by": by})
        updates_of(model, 3)
        trained.append(model)
    assert_same_model(*trained)
    other = make_model({"name": "asymmetric", "upper": "rollback", "lower": "leaky"})
    updates_of(other, 3)
    assert differences(other.policy.state_dict(), trained[0].policy.state_dict())


NESTED = {
    "name": "asymmetric",
    "upper": {
        "name": "position_aware",
        "early": {"name": "sigmoid", "softness": "lin_0.1", "clip_range": None},
        "late": {"name": "kl_adaptive", "target": 0.01, "divergence": "k3", "beta_init": 2.0},
        "midpoint": 30.0,
        "width": {"start": 4.0, "end": 1.0, "end_fraction": 1.0},
    },
    "lower": {"name": "asymmetric", "upper": "spo", "lower": {"name": "kl_adaptive", "target": 0.5}, "by": "advantage"},
    "by": "ratio",
}


def test_nested_spec_through_json_and_yaml():
    penalty = make_penalty(NESTED)
    spec = penalty.spec()
    for again in (json.loads(json.dumps(spec)), yaml.safe_load(yaml.safe_dump(spec)), spec):
        assert again == spec
        assert make_penalty(again).spec() == spec
    # What was written is in it, at its place, and what was left out is written out
    assert spec["upper"]["early"] == NESTED["upper"]["early"]
    assert spec["upper"]["late"].items() >= NESTED["upper"]["late"].items()
    assert (spec["upper"]["midpoint"], spec["upper"]["width"]) == (30.0, NESTED["upper"]["width"])
    assert spec["lower"]["upper"] == make_penalty("spo").spec()
    assert (spec["by"], spec["lower"]["by"]) == ("ratio", "advantage")
    inputs = grid(n_positions=10)
    assert th.equal(make_penalty(spec).effective_advantage(inputs), penalty.effective_advantage(inputs))


def test_spec_as_a_user_writes_it_in_yaml():
    text = """
    name: position_aware
    midpoint: 50
    early: {name: linear_ramp, softness: lin_0.2}
    late:
      name: asymmetric
      by: advantage
      lower: {name: dual_clip, dual_clip: 2}
    """
    penalty = make_penalty(yaml.safe_load(text))
    assert penalty.early.softness(0.5) == pytest.approx(0.1)
    assert penalty.late.spec()["upper"] == make_penalty("hard").spec()
    assert penalty.late.lower.dual_clip(1.0) == 2
    assert penalty.midpoint(0.0) == 50


def test_parts_may_be_names_specs_classes_and_penalties():
    sigmoid = make_penalty("sigmoid")
    for given in ("sigmoid", {"name": "sigmoid"}, type(sigmoid), sigmoid):
        assert make_penalty("asymmetric", upper=given).upper.spec() == sigmoid.spec()


@pytest.mark.parametrize("outer", [("asymmetric", "upper"), ("asymmetric", "lower"), ("position_aware", "late")])
def test_what_the_parts_need_is_asked_for(outer):
    name, where = outer
    for inner, kl, positions in [
        ("hard", False, False),
        ("kl_fixed", True, False),
        ({"name": "kl_fixed", "divergence": "k3"}, False, False),
        ("position_aware", False, True),
        ({"name": "position_aware", "early": "kl_adaptive"}, True, True),
        ({"name": "asymmetric", "lower": {"name": "asymmetric", "upper": "kl_fixed"}}, True, False),
    ]:
        penalty = make_penalty(name, **{where: inner})
        assert penalty.uses_kl is kl
        assert penalty.uses_positions is (positions or name == "position_aware")


class HandsOff(GatePenalty):
    """A custom shape with a state: it counts the updates."""

    updates = 0

    def gate(self, inputs):
        return th.zeros_like(inputs.ratio)

    def after_update(self, mean_kl, progress_remaining):
        self.updates += 1
        return {"updates": float(self.updates)}

    def state_dict(self):
        return {"updates": self.updates}

    def load_state_dict(self, state):
        self.updates = state["updates"]


def test_states_and_logs_of_the_parts():
    spec = {
        "name": "asymmetric",
        "upper": {"name": "kl_adaptive", "target": 1e-6},
        "lower": {"name": "position_aware", "early": HandsOff, "late": {"name": "kl_adaptive", "target": 100, "factor": 4}},
    }
    model = make_model(spec)
    updates = updates_of(model, 3)
    wanted = {"klip/upper/beta", "klip/upper/kl", "klip/lower/early/updates", "klip/lower/late/beta", "klip/lower/late/kl"}
    assert all({key for key in values if key.startswith("klip/")} - DIAGNOSTICS == wanted for values in updates)
    assert [values["klip/upper/beta"] for values in updates] == [1.0, 2.0, 4.0]
    assert [values["klip/lower/late/beta"] for values in updates] == [1.0, 0.25, 0.0625]
    assert [values["klip/lower/early/updates"] for values in updates] == [1, 2, 3]
    assert all(values["klip/upper/kl"] == values["klip/lower/late/kl"] > 0 for values in updates)
    state = {"upper": {"beta": 8.0}, "lower": {"early": {"updates": 3}, "late": {"beta": 1 / 64}}}
    assert model.penalty.state_dict() == state

    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = quiet(KLipPPO.load(file, env=gym.make("CartPole-v1"), device="cpu"))
    assert loaded.penalty.state_dict() == state
    values = updates_of(loaded, 1)[0]
    assert (values["klip/upper/beta"], values["klip/lower/late/beta"], values["klip/lower/early/updates"]) == (8.0, 1 / 64, 4)


def test_coefficients_of_nested_analytic_divergences_add_up_in_training():
    """Half of the samples held by 2·KL and half by 6·KL is not all of them held by either."""
    trained = {}
    two, six = {"name": "kl_fixed", "beta": 2}, {"name": "kl_fixed", "beta": 6}
    for name, penalty in {
        "two": two,
        "six": six,
        "both": {"name": "position_aware", "early": two, "late": six, "midpoint": 7.5, "width": 1e-3},
        "two and two": {"name": "asymmetric", "upper": two, "lower": two},
    }.items():
        model = make_model(penalty, Clock(episode_length=16))
        updates_of(model, 2)
        trained[name] = state_of(model.policy)
    assert not differences(trained["two and two"], trained["two"])
    assert differences(trained["both"], trained["two"]) and differences(trained["both"], trained["six"])


class NoParts(Penalty):
    """A penalty that is no gate can be a part, too."""

    def beta(self, inputs):
        return 0.3 * th.ones_like(inputs.ratio)


def test_custom_parts():
    penalty = make_penalty("asymmetric", upper=NoParts(), lower=HandsOff)
    inputs = grid()
    expected = th.where(inputs.ratio > 1, 0.3, th.where(inputs.ratio < 1, 0.0, 0.15)).to(th.float64)
    assert_close(penalty.beta(inputs), expected)
    assert_close(penalty.effective_advantage(inputs), inputs.advantages + expected / inputs.ratio)
    assert make_penalty(json.loads(json.dumps(penalty.spec()))).spec() == penalty.spec()

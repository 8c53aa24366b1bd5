"""What the user may write for a penalty and its parameters, what it then computes with, and what is refused."""

import json
import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3.common.utils import LinearSchedule

from sb3_klip import KLipPPO
from sb3_klip.penalties import (
    Choice,
    GatePenalty,
    Number,
    Penalty,
    PenaltyInputs,
    available_penalties,
    make_penalty,
    register_penalty,
    registry,
)
from tests.envs import NoisyRewards
from tests.runs import FAMILY, assert_same_model, differences, quiet, state_of, updates_of

PROGRESS = [1.0, 0.7, 0.5, 0.1, 0.0]


def numbers():
    """Every number of every registered penalty, by penalty and name."""
    for name in available_penalties():
        for parameter in type(make_penalty(name)).parameters().values():
            if isinstance(parameter, Number):
                yield pytest.param(name, parameter, id=f"{name}-{parameter.name}")


every_number = pytest.mark.parametrize(["penalty", "parameter"], list(numbers()))


def typical(parameter):
    """A number that the parameter takes, and another."""
    value = 0.2 if parameter.default is None else parameter.default
    return value, value * 1.1


def given(penalty, parameter, value):
    """The penalty with this parameter, and what the parameter is at some times of the training."""
    made = make_penalty(penalty, **{parameter.name: value})
    return made, [getattr(made, parameter.attribute)(progress) for progress in PROGRESS]


def make_model(penalty, **arguments):
    defaults = dict(n_steps=64, batch_size=32, n_epochs=6, learning_rate=1e-2, device="cpu", seed=4)
    arguments = {**defaults, "policy_kwargs": dict(net_arch=[16]), **arguments}
    return quiet(KLipPPO("MlpPolicy", gym.make("CartPole-v1"), penalty=penalty, **arguments))


def grid(progress_remaining=1.0, dtype=th.float32):
    """Ratios and advantages, none of them on the edge of a band."""
    ratio, advantages = th.meshgrid(
        th.cat([th.linspace(0.013, 2.5, 301), th.tensor([1.0, 30.0])]), th.tensor([-2.0, -0.1, 0.0, 1.0]), indexing="ij"
    )
    return PenaltyInputs(
        ratio.flatten().to(dtype),
        advantages.flatten().to(dtype),
        0.2,
        th.arange(ratio.numel()).float(),
        progress_remaining,
    )


# What a number may be


@every_number
def test_number(penalty, parameter):
    value, _ = typical(parameter)
    made, values = given(penalty, parameter, value)
    assert values == pytest.approx([value] * len(PROGRESS))
    assert made.spec()[parameter.name] == value


@every_number
@pytest.mark.parametrize("kind", [np.float32, np.float64, float])
def test_numbers_of_other_kinds(penalty, parameter, kind):
    value, _ = typical(parameter)
    made, values = given(penalty, parameter, kind(value))
    assert values == pytest.approx([value] * len(PROGRESS), rel=1e-6)
    assert json.loads(json.dumps(made.spec()))[parameter.name] == pytest.approx(value)


@every_number
def test_function_of_the_progress_remaining(penalty, parameter):
    end, start = typical(parameter)
    made, values = given(penalty, parameter, lambda progress: end + progress**2 * (start - end))
    assert values == pytest.approx([end + progress**2 * (start - end) for progress in PROGRESS])
    with pytest.raises(ValueError, match=rf"{parameter.name}=.*plain JSON cannot hold"):
        made.spec()


@every_number
def test_schedule_of_sb3(penalty, parameter):
    end, start = typical(parameter)
    schedule = LinearSchedule(start, end, 0.4)
    made, values = given(penalty, parameter, schedule)
    assert values == pytest.approx([schedule(progress) for progress in PROGRESS])
    assert values[:3] == pytest.approx([start, start + 0.75 * (end - start), end])
    again = make_penalty(json.loads(json.dumps(made.spec())))
    assert [getattr(again, parameter.attribute)(progress) for progress in PROGRESS] == values
    assert again.spec() == made.spec()


@every_number
def test_start_and_end(penalty, parameter):
    start, end = typical(parameter)
    _, values = given(penalty, parameter, {"start": start, "end": end})
    assert values == pytest.approx([end + progress * (start - end) for progress in PROGRESS])
    _, values = given(penalty, parameter, {"start": start, "end": end, "end_fraction": 0.5})
    assert values[2:] == pytest.approx([end] * 3)


@every_number
def test_decrease_to_zero_as_the_zoo_writes_it(penalty, parameter):
    value, _ = typical(parameter)
    if max(parameter.above, parameter.at_least) > 0:
        with pytest.raises(ValueError, match=rf"{parameter.name} must be {parameter.range_text}, got"):
            given(penalty, parameter, f"lin_{value}")
        return
    made, values = given(penalty, parameter, f"lin_{value}")
    assert values == pytest.approx([value * progress for progress in PROGRESS])
    assert made.spec()[parameter.name] == f"lin_{value}"


@every_number
def test_progress_beyond_the_end_is_the_end(penalty, parameter):
    """The last rollout may overshoot the total number of timesteps, and the progress falls below 0."""
    end, start = typical(parameter)
    for value in ({"start": start, "end": end}, lambda progress: end + progress * (start - end)):
        made, _ = given(penalty, parameter, value)
        assert getattr(made, parameter.attribute)(-0.3) == getattr(made, parameter.attribute)(0.0) == pytest.approx(end)


@every_number
@pytest.mark.parametrize("value", ["0.1x", True, [0.2], (), {1: 2}, {"start": 0.1}, {"from": 0.1, "end": 0.2}, 1j, object()])
def test_what_is_no_number(penalty, parameter, value):
    with pytest.raises(ValueError, match=rf"penalty '{penalty}': {parameter.name}"):
        make_penalty(penalty, **{parameter.name: value})


@every_number
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "lin_nan", "lin_inf", "lin_", "lin_x", "linear_0.1"])
def test_what_is_not_finite(penalty, parameter, value):
    with pytest.raises(ValueError, match=rf"penalty '{penalty}': {parameter.name}"):
        make_penalty(penalty, **{parameter.name: value})


@every_number
def test_nothing(penalty, parameter):
    if parameter.default is None:
        assert getattr(make_penalty(penalty, **{parameter.name: None}), parameter.attribute) is None
    else:
        with pytest.raises(ValueError, match=rf"{parameter.name} must be a number .*, got None"):
            make_penalty(penalty, **{parameter.name: None})


@every_number
def test_range(penalty, parameter):
    """Just beyond its ends, and on the ends that do not belong to it."""
    for end, direction, open_end in [
        (parameter.above, -1, True),
        (parameter.at_least, -1, False),
        (parameter.below, 1, True),
        (parameter.at_most, 1, False),
    ]:
        if math.isfinite(end):
            outside = [end + direction * 1e-6, end + direction * 10] + [end] * open_end
            for value in outside:
                with pytest.raises(ValueError, match=rf"penalty '{penalty}': {parameter.name} must be .*, got {value:g}"):
                    make_penalty(penalty, **{parameter.name: value})
            inside, _ = typical(parameter)
            with pytest.raises(ValueError, match=rf"{parameter.name} must be"):
                make_penalty(penalty, **{parameter.name: {"start": inside, "end": outside[0]}})
            if not open_end:
                assert given(penalty, parameter, end)[1] == [end] * len(PROGRESS)


@pytest.mark.parametrize(
    ["name", "parameters"],
    [
        *((name, dict(softness=value)) for name in ("linear_ramp", "sigmoid", "soft_min") for value in (0, -0.1, 0.0)),
        *((name, dict(clip_range=value)) for name in ("hard", "spo", "sigmoid", "none") for value in (0, 1, -0.2, 1.2)),
        *(("leaky", dict(alpha=value)) for value in (-0.1, 1.1)),
        *(("pspo", dict(alpha=value)) for value in (-0.1, 1.1)),
        *((name, dict(alpha=-0.1)) for name in ("rollback", "tanh")),
        *(("dual_clip", dict(dual_clip=value)) for value in (1, 0.5, -3)),
        *(("clip_higher", {key: value}) for key in ("clip_range_low", "clip_range_high") for value in (0, 1, -0.2)),
        *(("cispo", dict(clip_range_low=value)) for value in (0, 1.1)),
        ("cispo", dict(clip_range_high=0)),
        *(("sapo", {key: value}) for key in ("tau_pos", "tau_neg") for value in (0, -1)),
        ("kl_fixed", dict(beta=-0.1)),
        *(("kl_adaptive", dict(target=value)) for value in (0, -0.01)),
        *(("kl_adaptive", dict(factor=value)) for value in (1, 0.5)),
        ("kl_adaptive", dict(tolerance=0.9)),
        ("kl_adaptive", dict(beta_min=0)),
        ("position_aware", dict(width=0)),
        ("position_aware", dict(midpoint=-1)),
    ],
)
def test_ranges_of_the_catalogue(name, parameters):
    (parameter, value), *_ = parameters.items()
    with pytest.raises(ValueError, match=rf"penalty '{name}': {parameter} must be .*, got {value:g}"):
        make_penalty(name, **parameters)
    with pytest.raises(ValueError, match=parameter):
        KLipPPO("MlpPolicy", "CartPole-v1", penalty=name, penalty_kwargs=parameters)


@pytest.mark.parametrize(
    ["name", "parameters"],
    [
        ("leaky", dict(alpha=0)),
        ("leaky", dict(alpha=1)),
        ("pspo", dict(alpha=0.0)),
        ("pspo", dict(alpha=1.0)),
        ("rollback", dict(alpha=0)),
        ("cispo", dict(clip_range_low=1.0, clip_range_high=4.0)),
        ("kl_fixed", dict(beta=0)),
        ("kl_adaptive", dict(tolerance=1, beta_min=1, beta_max=1)),
        ("position_aware", dict(midpoint=0)),
    ],
)
def test_ends_that_belong_to_the_range(name, parameters):
    assert make_penalty(name, **parameters).spec().items() >= parameters.items()


@pytest.mark.parametrize(
    "parameters", [dict(beta_min=2.0, beta_max=1.0), dict(beta_init=3, beta_max=2.0), dict(beta_init=0.1, beta_min=0.5)]
)
def test_bounds_of_the_adaptive_coefficient_must_be_in_order(parameters):
    with pytest.raises(ValueError, match=r"'kl_adaptive': beta_min <= beta_init <= beta_max must hold, got"):
        make_penalty("kl_adaptive", **parameters)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda progress: 1 / progress,
        lambda progress: "much",
        lambda progress: None,
        lambda progress, more: 0.1,
        lambda progress: 0.1 if progress > 0 else -0.1,
        lambda progress: math.nan if progress == 0.5 else 0.1,
        {"start": 0.1, "end": 0.05, "end_fraction": 0},
        {"start": 0.1, "end": 0.05, "end_fraction": -0.5},
        {"start": True, "end": 0.05},
        {"start": "0.1", "end": None},
    ],
)
def test_schedules_that_are_none(schedule):
    with pytest.raises(ValueError, match="penalty 'sigmoid': softness"):
        make_penalty("sigmoid", softness=schedule)


@pytest.mark.parametrize("value", ["kl", None, True, 1, ["analytic"]])
def test_choices(value):
    for name, parameter in [("kl_fixed", "divergence"), ("kl_adaptive", "divergence"), ("asymmetric", "by")]:
        options = type(make_penalty(name)).parameters()[parameter].options
        with pytest.raises(ValueError, match=rf"{parameter} must be one of .*{options[0]}.*, got"):
            make_penalty(name, **{parameter: value})


# Names and specs


@pytest.mark.parametrize("name", FAMILY)
def test_spec_through_json_and_yaml(name):
    penalty = make_penalty(FAMILY[name])
    spec = penalty.spec()
    assert spec["name"] == FAMILY[name]["name"]
    assert spec.keys() == {"name"} | type(penalty).parameters().keys()
    for again in (spec, json.loads(json.dumps(spec, allow_nan=False)), yaml.safe_load(yaml.safe_dump(spec))):
        assert again == spec
        made = make_penalty(again)
        assert type(made) is type(penalty) and made.spec() == spec
    inputs = grid(progress_remaining=0.6)
    assert th.equal(make_penalty(spec).effective_advantage(inputs), penalty.effective_advantage(inputs))


def test_the_same_penalty_in_four_forms():
    made = make_penalty("sigmoid", softness=0.3)
    for form, kwargs in [
        ("sigmoid", dict(softness=0.3)),
        ({"name": "sigmoid", "softness": 0.3}, {}),
        ({"name": "sigmoid"}, dict(softness=0.3)),
        (type(made), dict(softness=0.3)),
    ]:
        assert make_penalty(form, **kwargs).spec() == made.spec()
        assert KLipPPO("MlpPolicy", "CartPole-v1", penalty=form, penalty_kwargs=kwargs).penalty.spec() == made.spec()
    assert make_penalty(made) is made


def test_a_spec_is_not_changed_by_its_use():
    spec = {"name": "asymmetric", "upper": {"name": "sigmoid", "softness": {"start": 0.1, "end": 0.0}}}
    before = json.dumps(spec)
    made = make_penalty(spec)
    assert json.dumps(spec) == before
    made.spec()["upper"]["name"] = "spo"
    assert made.spec()["upper"]["name"] == "sigmoid"


@pytest.mark.parametrize(
    ["penalty", "message"],
    [
        ("sigmod", r"unknown penalty 'sigmod'; did you mean 'sigmoid'\?"),
        ("xyzzy", r"unknown penalty 'xyzzy'; available: .*hard.*spo"),
        ("", r"unknown penalty ''; available"),
        ("nowhere.Gate", r"'nowhere\.Gate' is not defined here"),
        ("os.path", r"'os\.path' is not a subclass of"),
        (None, "a penalty is a name, a spec or a Penalty, got None"),
        (1.5, "a penalty is a name, a spec or a Penalty, got 1.5"),
        (["hard"], r"a penalty is a name, a spec or a Penalty, got \['hard'\]"),
        (lambda inputs: 0, "a penalty is a name, a spec or a Penalty, got <function"),
        ({}, 'a penalty spec .*"name"'),
        ({"name": 3}, 'a penalty spec .*"name"'),
        ({"softness": 0.1}, 'a penalty spec .*"name"'),
        ({"name": "hard", 1: 2}, 'a penalty spec .*"name"'),
        ({"name": "sigmoid", "softnes": 0.1}, "penalty 'sigmoid' has no parameter 'softnes'; it takes softness, clip_range"),
        ({"name": "hard", "penalty": "spo"}, "penalty 'hard' has no parameter 'penalty'"),
        ({"name": "hard", "self": 1}, "penalty 'hard' has no parameter 'self'"),
        ({"name": "hard", "softness": 0.1}, r"has no parameter 'softness'.*belongs to linear_ramp, sigmoid, soft_min"),
    ],
)
def test_penalties_that_are_none(penalty, message):
    with pytest.raises(ValueError, match=message):
        make_penalty(penalty)
    with pytest.raises(ValueError, match=message):
        KLipPPO("MlpPolicy", "CartPole-v1", penalty=penalty)


@pytest.mark.parametrize(
    ["inner", "message"],
    [
        ("sigmod", r"unknown penalty 'sigmod'; did you mean 'sigmoid'\?"),
        ({"name": "sigmoid", "softnes": 0.1}, "penalty 'sigmoid' has no parameter 'softnes'"),
        ({"name": "sigmoid", "softness": -1}, "penalty 'sigmoid': softness must be > 0, got -1"),
        ({"name": "kl_adaptive", "beta_min": 5}, "penalty 'kl_adaptive': beta_min <= beta_init"),
        ({"softness": 1}, 'a penalty spec .*"name"'),
        (None, "a penalty is a name, a spec or a Penalty, got None"),
        (["hard"], "a penalty is a name, a spec or a Penalty"),
    ],
)
def test_nested_specs_say_where_they_are_wrong(inner, message):
    late = {"name": "position_aware", "late": inner}
    with pytest.raises(ValueError, match=rf"penalty 'asymmetric': lower: penalty 'position_aware': late: {message}"):
        make_penalty({"name": "asymmetric", "lower": late})


def test_parameters_must_not_be_given_twice():
    with pytest.raises(ValueError, match=r"given twice.*softness"):
        make_penalty({"name": "sigmoid", "softness": 0.1}, softness=0.2)
    with pytest.raises(ValueError, match="built already: give softness"):
        make_penalty(make_penalty("sigmoid"), softness=0.2)
    with pytest.raises(ValueError, match="built already: give softness"):
        KLipPPO("MlpPolicy", "CartPole-v1", penalty=make_penalty("sigmoid"), penalty_kwargs=dict(softness=0.2))


def test_catalogue_is_complete():
    catalogue = "none hard linear_ramp sigmoid soft_min tanh leaky rollback spo dual_clip clip_higher cispo sapo gppo pspo"
    scalars_and_combinators = "kl_fixed kl_adaptive asymmetric position_aware"
    assert set(available_penalties()) >= {*catalogue.split(), *scalars_and_combinators.split()}
    assert available_penalties() == sorted(available_penalties())
    for name in catalogue.split():
        gate = make_penalty(name)
        assert isinstance(gate, GatePenalty) and gate.clip_range is None
        assert make_penalty(name, clip_range=0.1).clip_range(1.0) == 0.1


# Shapes of one's own


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))


class Half(GatePenalty):
    """Takes a share of the gradient away on one side of a threshold."""

    share = Number(0.5, at_least=0.0, at_most=1.0)
    side = Choice("high", ("high", "low"))

    def gate(self, inputs):
        outside = inputs.ratio > 1.1 if self.side == "high" else inputs.ratio < 0.9
        return self.share(inputs.progress_remaining) * outside.to(inputs.ratio.dtype)


def test_registering(own_registry):
    class Registered(Half):
        pass

    assert register_penalty("half")(Registered) is Registered
    assert "half" in available_penalties()
    penalty = make_penalty({"name": "half", "share": "lin_1", "side": "low"})
    assert isinstance(penalty, Registered)
    assert penalty.spec() == {"name": "half", "share": "lin_1", "side": "low", "clip_range": None}
    with pytest.raises(ValueError, match="penalty 'half': share must be >= 0 and <= 1, got 2"):
        make_penalty("half", share=2)
    # A module that is read again defines the same class again
    assert register_penalty("half")(Registered) is Registered


@pytest.mark.parametrize("name", ["hard", "kl_adaptive", "asymmetric"])
def test_a_name_that_is_taken(name, own_registry):
    before = type(make_penalty(name))
    with pytest.raises(ValueError, match=rf"the penalty name '{name}' is taken by sb3_klip\.penalties.*choose another"):
        register_penalty(name)(Half)
    assert type(make_penalty(name)) is before


def test_without_registering():
    penalty = make_penalty(Half, share=0.25)
    assert penalty.spec()["name"] == f"{__name__}.Half"
    assert make_penalty(penalty.spec()).spec() == penalty.spec()
    assert make_penalty("asymmetric", lower=f"{__name__}.Half").lower.share(1.0) == 0.5


class Broken(GatePenalty):
    """Gives out what it is told to."""

    def __init__(self, output, **parameters):
        super().__init__(**parameters)
        self.output = output

    def gate(self, inputs):
        return self.output(inputs)


@pytest.mark.parametrize(
    ["output", "message"],
    [
        (lambda inputs: inputs.ratio * math.nan, r"NaN.* at ratio"),
        (lambda inputs: th.where(inputs.ratio > 5, math.nan, 0.0), r"NaN.* at ratio 10"),
        (lambda inputs: th.where(inputs.advantages < 0, math.nan, 0.0), r"NaN.* advantage -"),
        (lambda inputs: (inputs.ratio - 1).sqrt(), r"NaN.* at ratio 0\.1"),
        (lambda inputs: inputs.ratio * (math.nan if inputs.progress_remaining < 0.5 else 0), r"NaN"),
        (lambda inputs: inputs.ratio[:, None], r"number per sample.*21, 1"),
        (lambda inputs: inputs.ratio[None], r"number per sample.*1, 21"),
        (lambda inputs: inputs.ratio[:-1], r"number per sample.*20"),
        (lambda inputs: inputs.ratio.mean(), r"number per sample"),
        (lambda inputs: 0.5, r"number per sample.*float"),
        (lambda inputs: None, r"number per sample.*NoneType"),
        (lambda inputs: inputs.ratio.numpy(), r"number per sample.*ndarray"),
        (lambda inputs: inputs.ratio > 1, r"number per sample.*bool"),
    ],
)
def test_a_gate_that_is_wrong_is_refused_at_construction(output, message):
    with pytest.raises(ValueError, match=rf"Broken.*gate must.*{message}"):
        KLipPPO("MlpPolicy", "CartPole-v1", penalty=Broken(output))


class BrokenBeta(Penalty):
    """Gives out what it is told to, for one of its methods."""

    uses_kl = True

    def __init__(self, **outputs):
        super().__init__()
        self.outputs = outputs

    def beta(self, inputs):
        return self._output("beta", inputs, lambda _: th.zeros_like(inputs.ratio))

    def effective_advantage(self, inputs):
        return self._output("effective_advantage", inputs, super().effective_advantage)

    def surrogate(self, inputs):
        return self._output("surrogate", inputs, super().surrogate)

    def kl_coef(self, inputs):
        return self._output("kl_coef", inputs, super().kl_coef)

    def _output(self, method, inputs, otherwise):
        return self.outputs[method](inputs) if method in self.outputs else otherwise(inputs)


#: What the error is about, for each method; the gate follows from the effective advantage.
MESSAGES = {
    "effective_advantage": "(gate|effective_advantage) must",
    "surrogate": "surrogate must",
    "kl_coef": "kl_coef must",
}


@pytest.mark.parametrize("method", MESSAGES)
@pytest.mark.parametrize(
    "output",
    [
        pytest.param(lambda inputs: 0.0, id="float"),
        pytest.param(lambda inputs: None, id="None"),
        pytest.param(lambda inputs: inputs.ratio.numpy(), id="numpy"),
        pytest.param(lambda inputs: th.tensor(0.0), id="scalar"),
        pytest.param(lambda inputs: inputs.ratio[:-1], id="short"),
        pytest.param(lambda inputs: inputs.ratio[:, None], id="column"),
        pytest.param(lambda inputs: inputs.ratio * math.nan, id="nan"),
    ],
)
def test_a_penalty_that_is_wrong_is_refused_at_construction(method, output):
    with pytest.raises(ValueError, match=rf"BrokenBeta.*{MESSAGES[method]}"):
        KLipPPO("MlpPolicy", "CartPole-v1", penalty=BrokenBeta(**{method: output}))


def in_training(wrong):
    """An output that is right at construction, where there are other numbers of samples than 32."""
    return lambda inputs: wrong(inputs) if len(inputs.ratio) == 32 else inputs.advantages


@pytest.mark.parametrize(
    "output",
    [
        lambda inputs: None,
        lambda inputs: inputs.ratio[:-1],
        lambda inputs: inputs.ratio[:, None],
        lambda inputs: inputs.ratio * math.nan,
    ],
    ids=["None", "short", "column", "nan"],
)
def test_a_wrong_coefficient_is_refused_at_construction(output):
    with pytest.raises(ValueError, match=r"BrokenBeta.*must"):
        KLipPPO("MlpPolicy", "CartPole-v1", penalty=BrokenBeta(beta=output))


@pytest.mark.parametrize("method", ["effective_advantage", "kl_coef"])
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda inputs: inputs.ratio * math.nan, id="nan"),
        pytest.param(lambda inputs: th.where(th.arange(32) == 20, math.nan, 0.0), id="one-nan"),
        pytest.param(lambda inputs: inputs.ratio[:-1], id="short"),
        pytest.param(lambda inputs: inputs.ratio[:, None], id="column"),
        pytest.param(lambda inputs: inputs.ratio.mean(), id="scalar"),
        pytest.param(lambda inputs: 0.5, id="float"),
    ],
)
def test_what_is_wrong_in_the_first_update_only(method, wrong):
    model = make_model(BrokenBeta(**{method: in_training(wrong)}))
    initial = state_of(model.policy)
    with pytest.raises(ValueError, match=MESSAGES[method]):
        model.learn(64)
    assert not differences(model.policy.state_dict(), initial)


@pytest.mark.parametrize("name", ["asymmetric", "position_aware"])
def test_a_part_that_is_wrong_in_the_first_update_only(name):
    part = BrokenBeta(effective_advantage=in_training(lambda inputs: inputs.ratio * math.nan))
    model = make_model(make_penalty(name, **dict.fromkeys(list(make_penalty(name).parts()), part)))
    initial = state_of(model.policy)
    with pytest.raises(ValueError, match=r"(gate|effective_advantage) must not return NaN"):
        model.learn(64)
    assert not differences(model.policy.state_dict(), initial)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(["method", "otherwise"], [("effective_advantage", 1.0), ("kl_coef", 0.0)])
def test_nan_at_ratios_that_are_met_later(method, otherwise, nested):
    """No ratio is in the gap at construction, nor in the first minibatch, where all are 1: no NaN gets through later."""

    def with_gap(inputs):
        return inputs.advantages * th.where((inputs.ratio > 1.06) & (inputs.ratio < 1.49), math.nan, otherwise)

    # The integral from 1 to the ratio would meet the gap at construction
    penalty = BrokenBeta(**{method: with_gap, "surrogate": lambda inputs: inputs.ratio * inputs.advantages})
    model = make_model({"name": "asymmetric", "upper": penalty, "lower": "none"} if nested else penalty)
    initial = state_of(model.policy)
    with pytest.raises(ValueError, match=rf"{MESSAGES[method]} not return NaN.* at ratio 1\.[01234]"):
        model.learn(10 * 64)
    assert differences(model.policy.state_dict(), initial)  # it did train
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())


def test_nan_at_ratios_that_are_met_later_in_a_gate():
    """With its own dual, or the integral from 1 to the ratio would have met it at construction."""

    class Gap(GatePenalty):
        def gate(self, inputs):
            return th.where((inputs.ratio < 0.94) & (inputs.ratio > 0.71), math.nan, 0.0)

        def weight_space(self, inputs):
            return th.zeros_like(inputs.ratio)

    model = make_model(Gap())
    with pytest.raises(ValueError, match=r"gate must not return NaN.* at ratio 0\.[789]"):
        model.learn(10 * 64)
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())


# The band


@pytest.mark.parametrize("name", [name for name in available_penalties() if isinstance(make_penalty(name), GatePenalty)])
def test_own_clip_range_takes_the_place_of_the_algorithms(name):
    inputs = grid()
    narrow = PenaltyInputs(inputs.ratio, inputs.advantages, 0.05)
    own, algorithms = make_penalty(name, clip_range=0.05), make_penalty(name)
    assert th.equal(own.gate(inputs), algorithms.gate(narrow))
    assert th.equal(own.surrogate(inputs), algorithms.surrogate(narrow))


def test_own_clip_range_in_training():
    trained = []
    for penalty, clip_range in [({"name": "hard", "clip_range": 0.05}, 0.3), ("hard", 0.05)]:
        model = make_model(penalty, clip_range=clip_range)
        updates = updates_of(model, 3)
        assert [values["train/clip_range"] for values in updates] == pytest.approx([clip_range] * 3)
        trained.append(model)
    assert_same_model(*trained)
    other = make_model("hard", clip_range=0.3)
    updates_of(other, 3)
    assert differences(other.policy.state_dict(), trained[0].policy.state_dict())


@pytest.mark.parametrize(
    "own", ["lin_0.3", {"start": 0.3, "end": 0}, LinearSchedule(0.3, 0.0, 1.0), lambda progress: 0.3 * progress]
)
def test_own_clip_range_with_a_schedule_is_that_of_ppo(own):
    trained = []
    for penalty, clip_range in [(make_penalty("hard", clip_range=own), 0.2), ("hard", LinearSchedule(0.3, 0.0, 1.0))]:
        model = make_model(penalty, clip_range=clip_range)
        updates_of(model, 3)
        trained.append(model)
    # 1 - 0.3·p + 0.3·p, computed in three ways, may differ in the last digit
    for name, parameter in trained[0].policy.state_dict().items():
        th.testing.assert_close(parameter, trained[1].policy.state_dict()[name], rtol=1e-4, atol=1e-5)


# Annealing


SOFT = ["linear_ramp", "sigmoid", "soft_min"]


@pytest.mark.parametrize("progress", [0.0, -0.28])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@pytest.mark.parametrize("name", SOFT)
def test_soft_gates_end_as_the_hard_one(name, dtype, progress):
    soft, hard = make_penalty(name, softness="lin_0.1"), make_penalty("hard")
    inputs = grid(progress_remaining=progress, dtype=dtype)
    assert th.equal(soft.gate(inputs), hard.gate(inputs))
    assert th.equal(soft.effective_advantage(inputs), hard.effective_advantage(inputs))
    th.testing.assert_close(soft.surrogate(inputs), hard.surrogate(inputs))
    # Before, it was another
    assert not th.equal(soft.gate(grid(progress_remaining=0.1, dtype=dtype)), hard.gate(inputs))


@pytest.mark.parametrize("name", SOFT)
def test_annealing_through_a_whole_training(name):
    gates = []

    class Watched(type(make_penalty(name))):
        def effective_advantage(self, inputs):
            gates.append((inputs.progress_remaining, self.gate(inputs)))
            return super().effective_advantage(inputs)

    model = make_model(Watched(softness="lin_0.2"))
    gates.clear()
    # The last rollout goes beyond the end
    model.learn(4 * 64 - 10)
    assert model.num_timesteps == 4 * 64
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())
    at_the_end = th.cat([gate for progress, gate in gates if progress < 0])
    before = th.cat([gate for progress, gate in gates if progress > 0])
    is_step = lambda gate: (gate == 0) | (gate == 0.5) | (gate == 1)  # noqa: E731
    assert is_step(at_the_end).all() and (at_the_end == 1).any()
    assert not is_step(before).all()


@pytest.mark.parametrize("schedule", [LinearSchedule(0.3, 0.0, 1.0), lambda progress: 0.3 * progress], ids=["sb3", "function"])
@pytest.mark.parametrize("name", FAMILY)
def test_band_that_closes_before_the_end(name, schedule):
    """As with SB3's PPO a clip range that is a function may even fall below 0 in the last rollout."""
    env = NoisyRewards(gym.spaces.Box(-1.0, 1.0, (2,), dtype=np.float32))
    arguments = dict(n_steps=48, batch_size=24, n_epochs=3, learning_rate=1e-2, policy_kwargs=dict(net_arch=[8]), seed=1)
    model = quiet(KLipPPO("MlpPolicy", env, clip_range=schedule, penalty=FAMILY[name], device="cpu", **arguments))
    model.learn(2 * 48 - 15)
    assert model._current_progress_remaining < 0
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())

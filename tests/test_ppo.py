"""KLipPPO takes the place of SB3's PPO, says what it did, and refuses what it cannot use."""

import inspect
import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule

from sb3_klip import KLipPPO
from sb3_klip.algorithms.loss import Minibatch, UpdateSettings, ppo_loss
from sb3_klip.diagnostics import beta_diagnostics
from sb3_klip.penalties import GatePenalty, make_penalty
from tests.envs import NoisyRewards
from tests.runs import UpdateValues, assert_same_model, differences, state_of

SMALL = dict(n_steps=64, batch_size=32, n_epochs=4, learning_rate=1e-2, seed=0, device="cpu")
SETTINGS = UpdateSettings(
    clip_range=0.2, clip_range_vf=None, ent_coef=0.0, vf_coef=0.5, normalize_advantage=False, progress_remaining=1.0
)
PERCENTILES = ["p01", "p05", "p25", "p50", "p75", "p95", "p99"]


def noisy():
    return NoisyRewards(spaces.Discrete(4))


def small_model(algorithm=KLipPPO, **arguments):
    return algorithm("MlpPolicy", noisy(), **{**SMALL, **arguments})


class FunctionGate(GatePenalty):
    """A gate that returns whatever a function of its inputs returns."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def gate(self, inputs):
        return self.function(inputs)


class FunctionGateWithDual(FunctionGate):
    """The same with a dual of its own, so that only the update itself calls the gate."""

    def weight_space(self, inputs):
        return th.zeros_like(inputs.ratio)


class Cauchy(GatePenalty):
    """A shape of a user's own, which is not registered."""

    def gate(self, inputs):
        past = self.distance(inputs).clamp(min=0.0) / 0.1
        return past**2 / (1 + past**2)


# ---- A drop-in for PPO


def signature(function):
    return [
        (parameter.name, parameter.default, parameter.kind) for parameter in inspect.signature(function).parameters.values()
    ]


def test_constructor_takes_all_of_ppos_arguments_with_the_same_defaults():
    of_ppo, ours = signature(PPO.__init__), signature(KLipPPO.__init__)
    assert ours[: len(of_ppo)] == of_ppo
    assert [(name, default) for name, default, _ in ours[len(of_ppo) :]][:2] == [("penalty", "hard"), ("penalty_kwargs", None)]


def test_learn_takes_all_of_ppos_arguments_with_the_same_defaults():
    def but_for_the_log_name(function):
        return [(name, default if name != "tb_log_name" else "", kind) for name, default, kind in signature(function)]

    assert but_for_the_log_name(KLipPPO.learn) == but_for_the_log_name(PPO.learn)


def test_is_a_ppo_with_the_same_policies():
    model = small_model()
    assert isinstance(model, PPO)
    assert KLipPPO.policy_aliases == PPO.policy_aliases
    assert model.learn(64) is model


def test_no_penalty_given_is_the_hard_one():
    assert small_model().penalty.spec() == {"name": "hard", "clip_range": None}


def test_learns_cartpole():
    model = KLipPPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=8, seed=0),
        n_steps=32,
        gamma=0.98,
        gae_lambda=0.8,
        learning_rate=LinearSchedule(2e-3, 0.0, 1.0),
        seed=0,
        device="cpu",
    )
    model.learn(10_000)
    mean_reward, _ = evaluate_policy(model, make_vec_env("CartPole-v1", n_envs=5, seed=1), n_eval_episodes=10)
    assert mean_reward > 150


def test_penalty_none_is_another_algorithm():
    models = {penalty: small_model(penalty=penalty).learn(64) for penalty in ("hard", "none")}
    assert differences(models["hard"].policy.state_dict(), models["none"].policy.state_dict())


def test_penalty_can_be_written_in_several_ways():
    expected = small_model(penalty="sigmoid", penalty_kwargs=dict(softness=0.3)).learn(128)
    for penalty in ({"name": "sigmoid", "softness": 0.3}, make_penalty("sigmoid", softness=0.3)):
        assert_same_model(small_model(penalty=penalty).learn(128), expected)
    other = small_model(penalty="sigmoid", penalty_kwargs=dict(softness=0.1)).learn(128)
    assert differences(other.policy.state_dict(), expected.policy.state_dict())


@pytest.mark.parametrize("own", [0.1, "lin_0.3"])
def test_own_clip_range_of_the_penalty_comes_before_the_algorithms(own):
    schedule = own if isinstance(own, float) else LinearSchedule(0.3, 0.0, 1.0)
    expected = small_model(PPO, clip_range=schedule).learn(256)
    model = small_model(clip_range=0.25, penalty="hard", penalty_kwargs=dict(clip_range=own)).learn(256)
    assert_same_model(model, expected)


class Events(BaseCallback):
    """Keeps the order of the calls and the names that each may look at."""

    def __init__(self):
        super().__init__()
        self.events = []

    def _keep(self, event):
        self.events.append((event, self.num_timesteps, sorted(self.locals)))

    def _on_training_start(self):
        self._keep("training start")

    def _on_rollout_start(self):
        self._keep("rollout start")

    def _on_step(self):
        self._keep("step")
        return True

    def _on_rollout_end(self):
        self._keep("rollout end")

    def _on_training_end(self):
        self._keep("training end")


def test_callbacks_see_what_ppos_see():
    of_ppo, ours = Events(), Events()
    small_model(PPO).learn(128, callback=of_ppo)
    small_model().learn(128, callback=ours)
    assert ours.events == of_ppo.events
    assert "rewards" in dict((event, names) for event, _, names in ours.events)["step"]


@pytest.mark.parametrize("penalty", ["hard", "position_aware", "kl_adaptive"])
def test_callback_can_stop_the_training(penalty):
    model = small_model(penalty=penalty)
    model.learn(1_000, callback=StopTrainingOnMaxEpisodes(max_episodes=5))
    # Episodes have 15 to 17 steps: the second rollout was not completed
    assert 64 < model.num_timesteps < 128 and model._n_updates == SMALL["n_epochs"]
    model.learn(128, reset_num_timesteps=False)
    assert model._n_updates > SMALL["n_epochs"]


def test_callback_can_be_a_function():
    seen = []
    small_model().learn(64, callback=lambda variables, _: not seen.append(variables["n_steps"]))
    assert seen == list(range(64))


def test_early_stopping_says_so(capsys):
    model = small_model(target_kl=1e-4, verbose=1).learn(64)
    assert "Early stopping at step 0 due to reaching max kl" in capsys.readouterr().out
    assert model._n_updates == 1


def test_progress_bar(capsys):
    small_model().learn(64, progress_bar=True)
    output = capsys.readouterr()
    assert "64/64" in output.out + output.err


def test_tensorboard_curves(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    # SB3 writes what an update logged after the rollout that follows it
    small_model(tensorboard_log=str(tmp_path)).learn(128)
    curves = event_accumulator.EventAccumulator(str(tmp_path / "KLipPPO_1")).Reload()
    tags = set(curves.Tags()["scalars"])
    assert {"train/policy_gradient_loss", "train/approx_kl", "train/clip_fraction", "train/explained_variance"} <= tags
    assert {"klip/frac_kill", "klip/gate_mean", "klip/beta_abs_mean", "klip/beta_p50"} <= tags
    assert len(curves.Scalars("klip/frac_kill")) == 1


class CountingBuffer(RolloutBuffer):
    """Counts the passes over the rollout."""

    def __init__(self, *args, start=0, **kwargs):
        self.passes = start
        super().__init__(*args, **kwargs)

    def get(self, batch_size=None):
        self.passes += 1
        return super().get(batch_size)


@pytest.mark.parametrize("penalty", ["hard", "position_aware"])
def test_custom_rollout_buffer(penalty):
    arguments = dict(rollout_buffer_class=CountingBuffer, rollout_buffer_kwargs=dict(start=10))
    model = small_model(penalty=penalty, **arguments).learn(128)
    assert isinstance(model.rollout_buffer, CountingBuffer)
    assert model.rollout_buffer.passes == 10 + 2 * SMALL["n_epochs"]


def test_policy_kwargs():
    model = small_model(policy_kwargs=dict(net_arch=dict(pi=[5], vf=[7]), activation_fn=th.nn.ReLU)).learn(64)
    assert model.policy.action_net.in_features == 5 and model.policy.value_net.in_features == 7


def test_policy_is_updated_in_training_mode_and_collects_in_evaluation_mode():
    modes = {}
    policy_mode = lambda model: model.policy.training  # noqa: E731

    class Modes(BaseCallback):
        def _on_step(self):
            modes["rollout"] = policy_mode(self.model)
            return True

    model = small_model()
    model.penalty = FunctionGate(lambda inputs: modes.update(update=policy_mode(model)) or th.zeros_like(inputs.ratio))
    model.learn(64, callback=Modes())
    assert modes == {"rollout": False, "update": True}


def test_custom_penalty_trains_without_being_registered():
    for penalty in (Cauchy, Cauchy(), {"name": f"{__name__}.Cauchy"}):
        model = small_model(penalty=penalty)
        before = state_of(model.policy)
        log = UpdateValues()
        model.learn(64, callback=log)
        assert differences(state_of(model.policy), before)
        # Softer than the hard gate on the same samples
        assert 0 < log.updates[0]["klip/gate_mean"] < log.updates[0]["klip/frac_kill"]


# ---- What is logged


def logged(**arguments):
    log = UpdateValues()
    small_model(**arguments).learn(256, callback=log)
    assert len(log.updates) == 4
    return log.updates


def test_logged_keys():
    keys = {"frac_in_band", "frac_kill", "frac_pass", "gate_mean", "beta_abs_mean", *(f"beta_{p}" for p in PERCENTILES)}
    for values in logged():
        assert {key.removeprefix("klip/") for key in values if key.startswith("klip/")} == keys


@pytest.mark.parametrize("penalty", ["hard", "none", "sigmoid", "spo"])
def test_logged_values_are_consistent(penalty):
    for values in logged(penalty=penalty):
        fractions = [values[f"klip/frac_{name}"] for name in ("in_band", "kill", "pass")]
        assert all(0 <= fraction <= 1 for fraction in fractions)
        assert sum(fractions) == pytest.approx(1, abs=1e-6)
        # All minibatches are of the same size, and no advantage is exactly 0
        assert values["train/clip_fraction"] == pytest.approx(1 - fractions[0], abs=1e-6)
        percentiles = [values[f"klip/beta_{name}"] for name in PERCENTILES]
        assert percentiles == sorted(percentiles)


def test_logged_gate_of_hard_is_the_kill_set():
    updates = logged(penalty="hard")
    for values in updates:
        assert values["klip/gate_mean"] == pytest.approx(values["klip/frac_kill"], abs=1e-5)
    assert max(values["klip/frac_kill"] for values in updates) > 0.01
    assert max(values["klip/beta_abs_mean"] for values in updates) > 0.01


def test_logged_gate_of_none_is_zero():
    updates = logged(penalty="none")
    for values in updates:
        assert values["klip/gate_mean"] == 0 and values["klip/beta_abs_mean"] == 0
        assert all(values[f"klip/beta_{name}"] == 0 for name in PERCENTILES)
    # The sets are the algorithm's, whatever the penalty does to them
    assert max(values["klip/frac_kill"] for values in updates) > 0.01


def test_beta_diagnostics_by_hand():
    ratio = th.tensor([1.0, 1.5, 0.5, 1.5])
    advantages = th.tensor([1.0, 2.0, -2.0, -1.0])
    effective_advantage = th.tensor([1.0, 0.0, 0.0, -1.0])
    # β is 0, -3, 1, 0; a percentile p lies at the position 3·p/100 of them in order
    expected = dict(beta_p01=-2.91, beta_p05=-2.55, beta_p25=-0.75, beta_p50=0.0, beta_p75=0.25, beta_p95=0.85, beta_p99=0.97)
    expected |= dict(frac_in_band=0.25, frac_kill=0.5, frac_pass=0.25, gate_mean=0.5, beta_abs_mean=1.0)
    assert beta_diagnostics(ratio, advantages, effective_advantage, 0.2) == pytest.approx(expected, abs=1e-6)


def test_beta_diagnostics_where_the_advantage_is_zero():
    ratio, zeros = th.tensor([0.5, 1.0, 2.0]), th.zeros(3)
    diagnostics = beta_diagnostics(ratio, zeros, zeros, 0.2)
    assert diagnostics["frac_in_band"] == 1 and diagnostics["gate_mean"] == 0 and diagnostics["beta_abs_mean"] == 0


def test_beta_diagnostics_of_a_gate_that_rolls_back():
    diagnostics = beta_diagnostics(th.tensor([2.0, 2.0]), th.tensor([1.0, 1.0]), th.tensor([-0.5, -0.5]), 0.2)
    assert diagnostics["gate_mean"] == 1.5 and diagnostics["beta_p50"] == -3.0


# ---- The loss of one minibatch


def minibatch(log_ratio, advantages):
    """A minibatch with these log-ratios, where only the policy matters."""
    n_samples = len(log_ratio)
    values = th.zeros(n_samples, requires_grad=True)
    log_prob = (th.as_tensor(log_ratio) - 1.0).requires_grad_()
    zeros, old_log_prob = th.zeros(n_samples), -th.ones(n_samples)
    return Minibatch(values, log_prob, zeros.clone(), zeros, old_log_prob, th.as_tensor(advantages), zeros)


def policy_gradient(batch, penalty="hard", settings=SETTINGS):
    loss, terms = ppo_loss(batch, make_penalty(penalty), settings)
    return th.autograd.grad(loss, batch.log_prob)[0], terms


@pytest.mark.parametrize("penalty", ["hard", "none"])
def test_gradient_by_hand(penalty):
    ratio = th.tensor([1.0, 1.1, 1.5, 1.5, 0.5, 0.5, 1.5])
    advantages = th.tensor([1.0, -2.0, 2.0, -2.0, -1.0, 1.0, 0.0])
    killed = th.tensor([False, False, True, False, True, False, False])
    gradient, terms = policy_gradient(minibatch(th.log(ratio), advantages), penalty)
    expected = -(ratio * advantages / len(ratio))
    if penalty == "hard":
        expected[killed] = 0
    th.testing.assert_close(gradient, expected)
    th.testing.assert_close(terms.ratio, ratio)
    assert terms.clip_fraction == pytest.approx(5 / 7)


@pytest.mark.parametrize("n_samples", [1, 2, 37, 64, 100, 255])
@pytest.mark.parametrize("normalize_advantage", [True, False])
def test_loss_of_hard_has_ppos_value_and_gradient_to_the_last_bit(n_samples, normalize_advantage):
    rng = np.random.default_rng(n_samples)
    log_ratio = rng.normal(0, 0.5, n_samples).astype(np.float32)
    advantages = rng.normal(0.3, 2, n_samples).astype(np.float32)
    settings = UpdateSettings(0.2, None, 0.0, 0.0, normalize_advantage, 1.0)
    batch = minibatch(log_ratio, advantages)
    gradient, terms = policy_gradient(batch, "hard", settings)

    advantages = batch.advantages
    if normalize_advantage and n_samples > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = th.exp(batch.log_prob - batch.old_log_prob)
    loss = -th.min(advantages * ratio, advantages * th.clamp(ratio, 1 - 0.2, 1 + 0.2)).mean()
    assert th.equal(gradient, th.autograd.grad(loss, batch.log_prob)[0])
    assert th.equal(terms.policy_loss, loss.detach())
    assert th.equal(terms.advantages, advantages)


FAR = [200.0, -200.0, 89.0, -89.0, 1e4, -1e4]


@pytest.mark.parametrize("penalty", ["hard", "none"])
@pytest.mark.parametrize("normalize_advantage", [True, False])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_log_ratios_out_of_range_of_floats_give_finite_gradients(penalty, normalize_advantage, sign):
    near = [0.0, 0.1, -0.1]
    log_ratio = th.tensor([*near, *FAR])
    advantages = sign * th.linspace(0.5, 2.0, len(log_ratio))
    settings = UpdateSettings(0.2, None, 0.0, 0.5, normalize_advantage, 1.0)
    batch = minibatch(log_ratio, advantages)
    gradient, terms = policy_gradient(batch, penalty, settings)
    assert gradient.dtype == th.float32
    assert th.isfinite(gradient).all()
    for name, term in terms._asdict().items():
        assert th.isfinite(term).all(), name
    # The samples next to them are not disturbed
    expected = -(th.exp(th.tensor(near)) * terms.advantages[:3] / len(log_ratio))
    th.testing.assert_close(gradient[:3], expected)
    # A sample that cannot be told from one of zero probability has next to no gradient
    assert (gradient[log_ratio < -80].abs() < 1e-30).all()


@pytest.mark.parametrize("log_ratio", FAR)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_hard_kills_far_out_samples_and_lets_corrective_ones_pass(log_ratio, advantage):
    gradient, _ = policy_gradient(minibatch(th.tensor([log_ratio]), th.tensor([advantage])))
    if (log_ratio > 0) == (advantage > 0):
        assert gradient == 0
    else:
        # Towards the old policy: down where the ratio is too high, up where it is too low
        assert th.sign(-gradient) == -math.copysign(1, log_ratio)


# ---- What is refused


BAD_GATES = {
    "nan": lambda inputs: th.full_like(inputs.ratio, math.nan),
    "nan somewhere": lambda inputs: th.where(inputs.ratio == inputs.ratio.max(), math.nan, 0.0),
    "one number": lambda inputs: th.zeros(1),
    "without dimension": lambda inputs: th.tensor(0.5),
    "a column": lambda inputs: th.zeros(len(inputs.ratio), 1),
    "too short": lambda inputs: th.zeros(len(inputs.ratio) - 1),
    "None": lambda inputs: None,
    "a number": lambda inputs: 0.5,
    "a list": lambda inputs: [0.0] * len(inputs.ratio),
    "a NumPy array": lambda inputs: np.zeros(len(inputs.ratio)),
    "booleans": lambda inputs: inputs.ratio > 1.2,
}


@pytest.mark.parametrize("cls", [FunctionGate, FunctionGateWithDual])
@pytest.mark.parametrize("gate", BAD_GATES.values(), ids=BAD_GATES)
def test_bad_gate_is_refused_before_training(gate, cls):
    with pytest.raises(ValueError, match=cls.__name__):
        small_model(penalty=cls(gate))


@pytest.mark.parametrize("cls", [FunctionGate, FunctionGateWithDual])
@pytest.mark.parametrize("gate", BAD_GATES.values(), ids=BAD_GATES)
def test_gate_that_turns_bad_is_refused_before_it_changes_a_parameter(gate, cls):
    """The gate is good at the beginning and at the end of training, where it is tried out before."""

    def turning(inputs):
        return gate(inputs) if 0.1 < inputs.progress_remaining < 0.9 else th.zeros_like(inputs.ratio)

    model = small_model(penalty=cls(turning))
    before = state_of(model.policy)
    with pytest.raises(ValueError, match=cls.__name__):
        model.learn(128)
    assert not differences(state_of(model.policy), before)


def test_gate_that_is_nan_at_rare_ratios_does_not_reach_the_parameters():
    """At the first minibatch of an update every ratio is 1: this gate goes bad in a later one."""
    model = small_model(
        penalty=FunctionGateWithDual(lambda inputs: th.where((inputs.ratio > 1.06) & (inputs.ratio < 1.4), math.nan, 0.0))
    )
    with pytest.raises(ValueError, match="FunctionGate"):
        model.learn(256)
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


@pytest.mark.parametrize(
    ["arguments", "sentence"],
    [
        (dict(penalty="hrad"), "unknown penalty 'hrad'.*'hard'"),
        (dict(penalty="sigmoyd"), "unknown penalty 'sigmoyd'.*'sigmoid'"),
        (dict(penalty="xyz"), "unknown penalty 'xyz'.*hard.*none"),
        (dict(penalty=None), "name.*spec.*None"),
        (dict(penalty=0.2), r"name.*spec.*0\.2"),
        (dict(penalty={"softness": 0.1}), 'needs a "name".*softness'),
        (dict(penalty={"name": 3}), 'needs a "name"'),
        (dict(penalty="nowhere.Gate"), "nowhere.Gate.*import"),
        (dict(penalty="torch.Tensor"), "torch.Tensor.*not a subclass"),
        (dict(penalty="sigmoid", penalty_kwargs=dict(sofness=0.1)), "sigmoid.*'sofness'.*softness"),
        (
            dict(penalty="hard", penalty_kwargs=dict(softness=0.1)),
            "hard.*'softness'.*clip_range.*softness belongs to.*sigmoid",
        ),
        (dict(penalty="sigmoid", penalty_kwargs=dict(softness=-1)), "sigmoid.*softness must be > 0, got -1"),
        (dict(penalty="sigmoid", penalty_kwargs=dict(softness=0)), "sigmoid.*softness must be > 0, got 0"),
        (dict(penalty="sigmoid", penalty_kwargs=dict(softness=math.nan)), "sigmoid.*softness must be > 0, got nan"),
        (dict(penalty="sigmoid", penalty_kwargs=dict(softness=math.inf)), "sigmoid.*softness must be > 0, got inf"),
        (dict(penalty="sigmoid", penalty_kwargs=dict(softness="wide")), "sigmoid.*softness must be a number.*'wide'"),
        (dict(penalty="sigmoid", penalty_kwargs=dict(softness="lin_wide")), "softness='lin_wide'.*must be a number"),
        (dict(penalty="sigmoid", penalty_kwargs=dict(softness=True)), "sigmoid.*softness must be a number.*True"),
        (dict(penalty="sigmoid", penalty_kwargs=dict(softness=[0.1])), r"sigmoid.*softness must be a number.*\[0\.1\]"),
        (
            dict(penalty="sigmoid", penalty_kwargs=dict(softness=lambda progress: "wide")),
            "softness must be a function.*number",
        ),
        (dict(penalty="sigmoid", penalty_kwargs=dict(softness=lambda progress: -progress)), "softness must be > 0"),
        (dict(penalty="hard", penalty_kwargs=dict(clip_range=1.5)), r"hard.*clip_range must be > 0 and < 1, got 1\.5"),
        (dict(penalty={"name": "sigmoid", "softness": 0.1}, penalty_kwargs=dict(softness=0.2)), "twice.*softness"),
        (dict(penalty=make_penalty("hard"), penalty_kwargs=dict(clip_range=0.1)), "Hard.*clip_range"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence_that_helps(arguments, sentence):
    # An environment that cannot be made either: the penalty is looked at first
    with pytest.raises(ValueError, match=sentence) as refusal:
        KLipPPO("MlpPolicy", "NoSuchEnv-v0", **arguments)
    assert "\n" not in str(refusal.value)


def test_unknown_environment_is_gymnasiums_own_error():
    with pytest.raises(gym.error.NameNotFound):
        KLipPPO("MlpPolicy", "NoSuchEnv-v0")

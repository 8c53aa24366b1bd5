"""No ratio, however far out, makes a gradient infinite or NaN; without advantage there is no gradient at all."""

import math

import numpy as np
import pytest
import torch as th
from torch.testing import assert_close

from sb3_klip.algorithms.loss import Minibatch, UpdateSettings, ppo_loss
from sb3_klip.penalties import GatePenalty, PenaltyInputs, available_penalties, make_penalty
from tests.runs import FAMILY

#: The family, softnesses near 0, and parts whose gradients are large in opposite directions.
PENALTIES = {
    **FAMILY,
    "linear_ramp-sharp": {"name": "linear_ramp", "softness": 1e-10},
    "sigmoid-sharp": {"name": "sigmoid", "softness": 1e-10},
    "soft_min-sharp": {"name": "soft_min", "softness": 1e-10},
    "spo-narrow": {"name": "spo", "clip_range": 1e-4},
    "sapo-steep": {"name": "sapo", "tau_pos": 1e3, "tau_neg": 1e3},
    "rollback-strong": {"name": "rollback", "alpha": 1e3},
    "kl_fixed-strong": {"name": "kl_fixed", "divergence": "k3", "beta": 1e3},
    "spo-by-position": {"name": "position_aware", "early": "spo", "late": {"name": "rollback", "alpha": 1e3}, "midpoint": 20},
    "divergences": {
        "name": "position_aware",
        "early": {"name": "kl_fixed", "divergence": "sample", "beta": 100},
        "late": {"name": "asymmetric", "upper": {"name": "kl_fixed", "divergence": "k3"}, "lower": "cispo"},
        "midpoint": 20,
    },
}
GATES = [name for name in available_penalties() if isinstance(make_penalty(name), GatePenalty)]
WITHOUT_KL = [*GATES, *(name for name in PENALTIES if name not in GATES and "kl" not in str(PENALTIES[name]))]
DTYPES = [th.float64, th.float32, th.bfloat16]


def minibatch(log_ratio, advantages, dtype=th.float32):
    """Samples with these log-ratios, as far as the dtype holds them, from policies of realistic densities."""
    log_ratio, advantages = (th.as_tensor(values, dtype=th.float64).to(dtype) for values in (log_ratio, advantages))
    old_log_prob = th.zeros_like(log_ratio)
    return Minibatch(
        values=th.zeros_like(log_ratio, requires_grad=True),
        log_prob=log_ratio.clone().requires_grad_(),
        entropy=None,
        old_values=th.zeros_like(log_ratio),
        old_log_prob=old_log_prob,
        advantages=advantages,
        returns=th.ones_like(log_ratio),
        positions=th.arange(len(log_ratio)).to(th.float32) % 40,
        kl=(log_ratio.detach() ** 2).clamp(max=1e4).requires_grad_(),
    )


def settings(normalize_advantage=False, progress_remaining=0.5, clip_range=0.2):
    return UpdateSettings(
        clip_range=clip_range,
        clip_range_vf=None,
        ent_coef=0.0,
        vf_coef=0.5,
        normalize_advantage=normalize_advantage,
        progress_remaining=progress_remaining,
    )


def gradient(batch, penalty, **kwargs):
    """The gradient with respect to the log-probabilities, and the loss, and what is logged."""
    batch = batch if penalty.uses_kl else batch._replace(kl=None)
    loss, terms = ppo_loss(batch, penalty, settings(**kwargs))
    loss.backward()
    return batch.log_prob.grad, loss.detach(), terms


def far_and_near():
    """Log-ratios from -200 to 200, and near 0, each with advantages of both signs, large and small, and with none."""
    log_ratio = th.cat([th.linspace(-200, 200, 161), th.linspace(-1, 1, 41), th.tensor([0.0, -88.8, 88.8, -103.5, 1e-7])])
    return [
        axis.flatten() for axis in th.meshgrid(log_ratio, th.tensor([-30.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 30.0]), indexing="ij")
    ]


@pytest.mark.parametrize("progress_remaining", [1.0, 0.5, 0.0, -0.3])
@pytest.mark.parametrize("normalize_advantage", [True, False])
@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_are_finite(name, normalize_advantage, progress_remaining):
    batch, penalty = minibatch(*far_and_near()), make_penalty(PENALTIES[name])
    slope, loss, terms = gradient(
        batch, penalty, normalize_advantage=normalize_advantage, progress_remaining=progress_remaining
    )
    assert th.isfinite(slope).all()
    assert slope.abs().max() > 0
    assert th.isfinite(loss)
    assert th.isfinite(terms.effective_advantage).all() and th.isfinite(terms.ratio).all()


@pytest.mark.parametrize("normalize_advantage", [True, False])
@pytest.mark.parametrize("name", PENALTIES)
def test_what_is_logged_is_a_number(name, normalize_advantage):
    """Infinite at most."""
    batch, penalty = minibatch(*far_and_near()), make_penalty(PENALTIES[name])
    _, _, terms = gradient(batch, penalty, normalize_advantage=normalize_advantage, progress_remaining=0.0)
    assert not [key for key, value in terms._asdict().items() if th.isnan(value).any()]


@pytest.mark.parametrize("log_ratio", [-200.0, -100.0, -88.0, -20.0, 20.0, 88.0, 89.0, 200.0])
@pytest.mark.parametrize("name", PENALTIES)
def test_a_single_sample_far_out_spoils_no_other(name, log_ratio):
    """The other samples' gradients are what they would be in a minibatch without it."""
    penalty = make_penalty(PENALTIES[name])
    log_ratios, advantages = [0.1, -0.3, 0.5, 0.0], [1.0, -1.0, -2.0, 0.5]
    with_it, _, _ = gradient(minibatch([*log_ratios, log_ratio], [*advantages, 1.0]), penalty)
    without, _, _ = gradient(minibatch(log_ratios, advantages), penalty)
    assert_close(with_it[:-1] * 5, without * 4)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_hard_gate_kills_and_keeps_far_out(advantage):
    batch = minibatch([-200.0, -100.0, -1.0, 1.0, 50.0, 100.0, 200.0], [advantage] * 7)
    slope, _, terms = gradient(batch, make_penalty("hard"))
    killed = [False] * 3 + [True] * 4 if advantage > 0 else [True] * 3 + [False] * 4
    assert (slope == 0).tolist() == killed
    # What is kept has a ratio that is held where it overflows, and goes the way of the advantage
    kept = ~th.tensor(killed)
    assert (th.sign(slope[kept]) == -advantage).all()
    normal = kept & (terms.ratio < 1e30)
    assert_close(slope[normal], -advantage * terms.ratio[normal] / 7)
    assert (slope[kept & ~normal].abs() > 1e28).all()


def test_ratios_are_exact_as_long_as_they_are_far_from_overflow():
    log_ratio = th.linspace(-75, 75, 301)
    _, _, terms = gradient(minibatch(log_ratio, th.ones(301)), make_penalty("none"))
    assert th.equal(terms.ratio, log_ratio.exp())
    batch = minibatch([79.0, 88.7, 200.0, -79.0, -88.7, -200.0], [1.0] * 6)
    _, _, terms = gradient(batch, make_penalty("none"))
    assert th.isfinite(terms.ratio).all() and (terms.ratio > 0).all()
    assert terms.ratio[:3].min() > 1e33 and terms.ratio[3:].max() < 1e-33


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("name", WITHOUT_KL)
def test_no_gradient_without_advantage(name, zero, dtype):
    penalty = make_penalty(PENALTIES[name])
    log_ratio, _ = far_and_near()
    advantages = th.where(th.arange(len(log_ratio)) % 2 == 0, zero, 1.0)
    slope, _, terms = gradient(minibatch(log_ratio, advantages, dtype), penalty)
    assert (slope[::2] == 0).all()
    assert (terms.effective_advantage[::2] == 0).all()
    assert slope[1::2].abs().max() > 0
    # And by itself
    slope, loss, _ = gradient(minibatch(log_ratio, th.full_like(log_ratio, zero), dtype), penalty)
    assert (slope == 0).all()
    assert loss == 0.5  # the value loss


@pytest.mark.parametrize("name", PENALTIES)
def test_one_sample_and_equal_advantages(name):
    """Where the standard deviation is not defined, or is zero."""
    penalty = make_penalty(PENALTIES[name])
    slope, loss, _ = gradient(minibatch([0.3], [2.0]), penalty, normalize_advantage=True)
    assert th.isfinite(slope).all() and th.isfinite(loss)
    slope, loss, _ = gradient(minibatch([0.3, -0.3, 5.0], [2.0, 2.0, 2.0]), penalty, normalize_advantage=True)
    assert th.isfinite(slope).all() and th.isfinite(loss)


@pytest.mark.parametrize("clip_range", [0.0, 1e-9, -0.05, 0.999, 3.0])
@pytest.mark.parametrize("name", PENALTIES)
def test_clip_ranges_that_a_schedule_may_reach(name, clip_range):
    slope, loss, _ = gradient(minibatch(*far_and_near()), make_penalty(PENALTIES[name]), clip_range=clip_range)
    assert th.isfinite(slope).all() and th.isfinite(loss)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PENALTIES)
def test_outputs_have_the_dtype_of_the_inputs(name, dtype):
    penalty = make_penalty(PENALTIES[name])
    ratio, advantages = th.tensor([0.5, 1.0, 1.5, 3.0], dtype=dtype), th.tensor([1.0, -1.0, 0.0, 2.0], dtype=dtype)
    inputs = PenaltyInputs(ratio, advantages, 0.2, th.tensor([0.0, 10.0, 20.0, 100.0]))
    for method in ["beta", "effective_advantage", "gate", "kl_coef", "surrogate"]:
        output = getattr(penalty, method)(inputs)
        assert (method, output.dtype, output.shape) == (method, dtype, ratio.shape)
        assert th.isfinite(output).all(), method
    if isinstance(penalty, GatePenalty):
        assert penalty.weight_space(inputs).dtype == dtype
    slope, _, terms = gradient(minibatch(ratio.log(), advantages, dtype), penalty)
    assert slope.dtype == terms.ratio.dtype == terms.effective_advantage.dtype == dtype


@pytest.mark.parametrize("dtype", [th.float32, th.bfloat16])
@pytest.mark.parametrize("name", PENALTIES)
def test_less_precision_gives_the_same_numbers(name, dtype):
    """Away from steps the three dtypes agree to their precision, and the scale of the whole minibatch."""
    generator = np.random.default_rng(0)
    ratio = generator.uniform(0.3, 3.0, 500)
    ratio = ratio[(np.abs(ratio - 0.8) > 0.02) & (np.abs(ratio - 1.2) > 0.02) & (np.abs(ratio - 1) > 0.02)]
    ratio = ratio[(np.abs(ratio - 1.28) > 0.02) & (np.abs(ratio - 0.86) > 0.03) & (np.abs(ratio - 1.14) > 0.03)]
    # Numbers that bfloat16 holds, so that only the computation differs
    ratio = th.tensor(ratio).to(th.bfloat16)
    advantages = th.tensor(generator.choice([-2.0, -0.5, 0.5, 2.0], len(ratio))).to(th.bfloat16)
    positions = th.arange(len(ratio)) % 40
    penalty = make_penalty(PENALTIES[name])
    exact, rough = (PenaltyInputs(ratio.to(to), advantages.to(to), 0.2, positions.float(), 0.5) for to in (th.float64, dtype))
    precision = 10 * th.finfo(dtype).eps
    for method in ["effective_advantage", "beta", "surrogate"]:
        wanted, output = getattr(penalty, method)(exact), getattr(penalty, method)(rough).double()
        scale = wanted.abs().max() + 1
        assert (output - wanted).abs().max() < precision * scale, method


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_of_the_dtype_are_kept(dtype):
    """Whatever a shape gives out, ``w·Â_eff`` stays a float."""

    class Huge(GatePenalty):
        def gate(self, inputs):
            return th.full_like(inputs.ratio, -th.finfo(inputs.ratio.dtype).max)

    log_ratio = [-200.0, 0.0, 5.0, 80.0, 200.0]
    for advantage in (-1.0, 1.0):
        slope, loss, _ = gradient(minibatch(log_ratio, [advantage] * 5, dtype), Huge())
        assert th.isfinite(slope).all() and th.isfinite(loss)
        assert (th.sign(slope) == -advantage).all()


def test_sampled_divergences_far_out_by_hand():
    """Their gradients are ``-β`` per unit of the log-probability for ``-log w``, and ``β·(w - 1)`` for k3."""
    log_ratio = th.tensor([-60.0, -3.0, 0.0, 3.0, 60.0])
    for divergence, wanted in [("sample", th.full((5,), -2.0)), ("k3", 2.0 * (log_ratio.exp() - 1))]:
        batch = minibatch(log_ratio, th.zeros(5))
        slope, _, _ = gradient(batch, make_penalty("kl_fixed", beta=2, divergence=divergence))
        assert_close(slope, wanted / 5, rtol=1e-5, atol=1e-7)


def test_value_loss_is_of_no_concern_to_the_penalty():
    for name in PENALTIES:
        batch = minibatch(*far_and_near())
        gradient(batch, make_penalty(PENALTIES[name]))
        assert_close(batch.values.grad, th.full_like(batch.values, -1 / len(batch.values)))


def test_divergence_gets_its_coefficient():
    """The gradient with respect to each sample's KL is its coefficient, averaged."""
    batch = minibatch([-100.0, -0.5, 0.5, 100.0], [1.0, -1.0, 0.0, 1.0])
    gradient(batch, make_penalty("asymmetric", upper={"name": "kl_fixed", "beta": 3}, lower={"name": "kl_fixed", "beta": 8}))
    assert batch.kl.grad.tolist() == [2.0, 2.0, 0.75, 0.75]
    assert math.isclose(batch.kl.grad.sum().item(), 5.5)

"""What is logged of β_t, by hand and from a training."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_klip import KLipPPO
from sb3_klip.diagnostics import beta_diagnostics
from sb3_klip.penalties import PenaltyInputs, make_penalty
from tests.runs import DIAGNOSTICS, FAMILY, quiet, updates_of

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")

PERCENTILES = ["beta_p01", "beta_p05", "beta_p25", "beta_p50", "beta_p75", "beta_p95", "beta_p99"]
KEYS = {"frac_in_band", "frac_kill", "frac_pass", "gate_mean", "beta_abs_mean", *PERCENTILES}


def diagnostics(ratio, advantages, effective_advantage, clip_range=0.2, dtype=th.float32):
    return beta_diagnostics(
        *(th.tensor(values, dtype=dtype) for values in (ratio, advantages, effective_advantage)), clip_range
    )


@pytest.mark.parametrize("dtype", [th.float32, th.float64, th.bfloat16])
def test_keys_and_plain_numbers(dtype):
    values = diagnostics([0.5, 1.0, 1.5], [1.0, -1.0, 2.0], [1.0, -1.0, 0.0], dtype=dtype)
    assert values.keys() == KEYS == {key.removeprefix("klip/") for key in DIAGNOSTICS}
    assert all(type(value) is float for value in values.values())


def test_by_hand():
    # In the band, zero advantage outside of it, two killed, one rolled back, two corrective, one half killed
    ratio = [1.1, 1.5, 2.0, 0.5, 1.5, 0.5, 2.0, 1.25]
    advantages = [1.0, 0.0, 1.0, -2.0, 2.0, 4.0, -1.0, 2.0]
    effective = [1.0, 0.0, 0.0, 0.0, -1.0, 4.0, -1.0, 1.0]
    values = diagnostics(ratio, advantages, effective)
    assert values["frac_in_band"] == 2 / 8
    assert values["frac_kill"] == 4 / 8
    assert values["frac_pass"] == 2 / 8
    # Gates 1, 1, 1.5 and 0.5 on the kill set, 0 elsewhere
    assert values["gate_mean"] == pytest.approx(4 / 8)
    # β = w·(Â_eff - Â): -2, 1, -4.5 and -1.25 there
    assert values["beta_abs_mean"] == pytest.approx(8.75 / 8)
    in_order = np.array([-4.5, -2.0, -1.25, 0.0, 0.0, 0.0, 0.0, 1.0])
    assert values["beta_p50"] == 0.0
    # Between the second and the third of the eight, three quarters of the way
    assert values["beta_p25"] == pytest.approx(-2 + 0.75 * 0.75)
    wanted = np.quantile(in_order, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    assert [values[key] for key in PERCENTILES] == pytest.approx(wanted.tolist())


def test_percentiles_of_a_hundred_and_one():
    """β is -1, -2, …, -101 in random order."""
    beta = -np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
    values = diagnostics(np.ones(101), np.ones(101), 1 + beta)
    assert [values[key] for key in PERCENTILES] == pytest.approx([-100, -96, -76, -51, -26, -6, -2])
    assert values["beta_abs_mean"] == pytest.approx(51)


def test_a_single_sample():
    values = diagnostics([2.0], [1.0], [0.0])
    assert (values["frac_kill"], values["gate_mean"], values["beta_abs_mean"]) == (1.0, 1.0, 2.0)
    assert {values[key] for key in PERCENTILES} == {-2.0}


def test_sets_are_those_of_the_papers_definition():
    """The edges belong to the band, and so does a sample without advantage; the penalty is of no concern."""
    edges = [th.tensor(0.8).item(), th.tensor(1.2).item()]
    values = diagnostics([*edges, *edges, 9.0, 0.1], [1.0, 1.0, -1.0, -1.0, 0.0, -0.0], np.zeros(6))
    assert (values["frac_in_band"], values["frac_kill"], values["frac_pass"]) == (1.0, 0.0, 0.0)
    values = diagnostics([1.3, 1.3, 0.7, 0.7], [1.0, -1.0, 1.0, -1.0], np.zeros(4), clip_range=0.25)
    assert (values["frac_in_band"], values["frac_kill"], values["frac_pass"]) == (0.0, 0.5, 0.5)
    values = diagnostics([1.3, 1.3, 0.7, 0.7], [1.0, -1.0, 1.0, -1.0], np.zeros(4), clip_range=0.35)
    assert (values["frac_in_band"], values["frac_kill"], values["frac_pass"]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("name", FAMILY)
def test_every_shape_is_described_by_its_effective_advantage(name):
    """β and the gate that are logged are those that the shape itself gives out."""
    penalty = make_penalty(FAMILY[name])
    generator = th.Generator().manual_seed(0)
    ratio = (0.4 * th.randn(400, generator=generator, dtype=th.float64)).exp()
    advantages = th.randn(400, generator=generator, dtype=th.float64)
    advantages[:20] = 0
    inputs = PenaltyInputs(ratio, advantages, 0.2, th.arange(400) % 50, 0.5)
    values = beta_diagnostics(ratio, advantages, penalty.effective_advantage(inputs), 0.2)
    assert values["gate_mean"] == pytest.approx(penalty.gate(inputs).mean().item())
    if penalty.uses_kl:
        return  # part of its coefficient acts through the distribution, not through the ratio
    if "kl" not in name:
        assert values["beta_abs_mean"] == pytest.approx(penalty.beta(inputs).abs().mean().item())
        assert values["beta_p95"] == pytest.approx(np.quantile(penalty.beta(inputs), 0.95))
    if name == "hard":
        assert values["gate_mean"] == pytest.approx(values["frac_kill"])
        assert values["frac_kill"] > 0.1


class Watch:
    """Keeps what a penalty got and gave in each minibatch; the update may call it more than once for one."""

    def __init__(self, model):
        self.minibatches = []
        penalty, policy = model.penalty, model.policy
        evaluate_actions, effective_advantage = policy.evaluate_actions, penalty.effective_advantage

        def evaluate(*args, **kwargs):
            self.minibatches.append(None)
            return evaluate_actions(*args, **kwargs)

        def give(inputs):
            output = effective_advantage(inputs)
            if self.minibatches:
                self.minibatches[-1] = (inputs, output)
            return output

        policy.evaluate_actions, penalty.effective_advantage = evaluate, give


@pytest.mark.parametrize("name", ["hard", "sigmoid", "spo", "nested-gates"])
def test_all_samples_of_an_update_count_the_same(name):
    """Minibatches of 40 and of 24 samples, over all epochs; the band is the algorithm's, not the gate's own."""
    spec = FAMILY.get(name) or {
        "name": "asymmetric",
        "upper": {"name": "leaky", "clip_range": 0.05},
        "lower": {"name": "position_aware", "early": "cispo", "midpoint": 5},
    }
    if name == "sigmoid":
        spec = {**spec, "clip_range": 0.3}
    model = quiet(
        KLipPPO(
            *("MlpPolicy", gym.make("Pendulum-v1")),
            **dict(n_steps=64, batch_size=40, n_epochs=5, learning_rate=1e-2, clip_range=0.1, device="cpu", seed=1),
            penalty=spec,
        )
    )
    watch = Watch(model)
    values = updates_of(model, 1)[0]
    assert [len(inputs.ratio) for inputs, _ in watch.minibatches] == [40, 24] * 5
    ratio, advantages, effective = (
        th.cat(tensors).double()
        for tensors in zip(*((inputs.ratio, inputs.advantages, output) for inputs, output in watch.minibatches), strict=True)
    )
    outside = (ratio > 1.1) | (ratio < 0.9)
    kill = outside & (th.sign(ratio - 1) == th.sign(advantages))
    beta = ratio * (effective - advantages)
    assert kill.any()
    assert values["klip/frac_kill"] == pytest.approx(kill.double().mean().item())
    assert values["klip/frac_pass"] == pytest.approx((outside & ~kill).double().mean().item())
    assert values["klip/frac_in_band"] == pytest.approx((~outside).double().mean().item())
    assert values["klip/gate_mean"] == pytest.approx((1 - effective / advantages).mean().item(), rel=1e-4)
    assert values["klip/beta_abs_mean"] == pytest.approx(beta.abs().mean().item(), rel=1e-4)
    for key in PERCENTILES:
        percent = int(key.removeprefix("beta_p"))
        assert values[f"klip/{key}"] == pytest.approx(np.quantile(beta, percent / 100), rel=1e-4, abs=1e-6)


def test_values_far_out_are_finite():
    ratio, advantages = th.tensor([1e34, 1e34, 1e-34, 1.0]), th.tensor([30.0, -30.0, 1.0, 0.0])
    for name in ("hard", "rollback", "none", "cispo"):
        effective = make_penalty(name).effective_advantage(PenaltyInputs(ratio, advantages, 0.2))
        values = beta_diagnostics(ratio, advantages, effective, 0.2)
        assert all(np.isfinite(value) for value in values.values())


def test_scalar_shapes_log_their_coefficient_too():
    for name, keys in [("kl_fixed", {"klip/beta"}), ("kl_adaptive", {"klip/beta", "klip/kl"}), ("hard", set())]:
        model = quiet(KLipPPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=32, batch_size=32, penalty=name, device="cpu"))
        values = updates_of(model, 1)[0]
        assert {key for key in values if key.startswith("klip/")} == DIAGNOSTICS | keys
        assert all(isinstance(value, float) for key, value in values.items() if key.startswith("klip/"))

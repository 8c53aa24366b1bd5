"""``sb3-klip verify``: it sees equality where there is some, and every difference."""

import math

import pytest
import torch as th

from sb3_klip import KLipPPO
from sb3_klip.cli import main
from sb3_klip.verify import compare_parameters, verify
from sb3_klip.zoo import ALGORITHMS

# Few epochs, but enough for the ratios to leave the band
TINY = {"n_epochs": 4, "learning_rate": 0.01}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_hard_gate_is_ppo(tmp_path):
    steps = []
    rows = verify("CartPole-v1", 768, hyperparams={**TINY, "batch_size": 50}, on_step=steps.append)
    assert [(row.rollout, row.timesteps) for row in rows] == [(1, 256), (2, 512), (3, 768)]
    assert all(row.equal and row.max_difference == 0 for row in rows)
    assert all(0 <= row.frac_kill <= 1 for row in rows) and any(row.frac_kill > 0 for row in rows)
    assert sum(steps) == 2 * 768
    assert list(tmp_path.iterdir()) == []


def test_another_shape_is_not_ppo():
    rows = verify("CartPole-v1", 256, hyperparams={**TINY, "penalty": "none"})
    assert rows[0].frac_kill > 0
    assert not rows[0].equal and rows[0].max_difference > 0


def test_sees_the_last_bit(monkeypatch):
    """One bit of one parameter, in the last of two updates."""

    class OneBitOff(KLipPPO):
        def train(self):
            super().train()
            if self.num_timesteps == 512:
                with th.no_grad():
                    bias = self.policy.value_net.bias
                    bias.copy_(th.nextafter(bias, th.ones_like(bias)))

    monkeypatch.setitem(ALGORITHMS, "klip_ppo", ALGORITHMS["klip_ppo"]._replace(algorithm=OneBitOff))
    rows = verify("CartPole-v1", 512, hyperparams=TINY)
    assert [row.equal for row in rows] == [True, False]
    assert 0 < rows[1].max_difference < 1e-6


def test_seed_matters():
    first, again, other = (verify("CartPole-v1", 256, seed=seed, hyperparams=TINY)[0].frac_kill for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("second", [[1.0, math.nan], [math.nan, math.nan]])
def test_nan_is_a_difference(second):
    difference, equal = compare_parameters({"weight": th.tensor([1.0, math.nan])}, {"weight": th.tensor(second)})
    assert math.isnan(difference) and not equal


def test_other_parameters():
    with pytest.raises(KeyError, match="bias"):
        compare_parameters({"weight": th.ones(1)}, {"weight": th.ones(1), "bias": th.ones(1)})


@pytest.mark.parametrize(
    ("env_id", "arguments"),
    [
        ("CartPole-v1", ["-n", "512"]),
        ("Pendulum-v1", ["-n", "512", "-params", "batch_size:50", "n_steps:64", "n_epochs:2"]),
        ("HalfCheetah-v4", ["-n", "256", "-params", "n_steps:128", "n_epochs:2"]),
    ],
)
def test_command(capsys, env_id, arguments):
    if env_id.startswith("HalfCheetah"):
        pytest.importorskip("mujoco")
    assert main(["verify", "--env", env_id, "--seed", "3", *arguments]) == 0
    out, _ = capsys.readouterr()
    assert f"{env_id}, seed 3" in out
    assert "equal to the last bit after each of 2 rollouts" in out


@pytest.mark.parametrize(
    ("algo", "env_id", "arguments"),
    [
        ("maskable_klip_ppo", "InvalidActionEnvDiscrete-v0", ["n_steps:64", "batch_size:50"]),
        ("maskable_klip_ppo", "InvalidActionEnvMultiBinary-v0", ["n_steps:64"]),
        ("klip_ppo_lstm", "CartPoleNoVel-v1", ["n_envs:2", "n_epochs:2", "batch_size:50"]),
    ],
)
def test_command_for_other_algorithms(capsys, algo, env_id, arguments):
    assert main(["verify", "--algo", algo, "--env", env_id, "-n", "128", "-params", *arguments]) == 0
    assert "equal to the last bit after each of 2 rollouts" in capsys.readouterr().out


def test_command_fails_on_a_difference(capsys):
    assert main(["verify", "--env", "CartPole-v1", "-n", "512", "-params", "penalty:'none'", "learning_rate:0.01"]) == 1
    out, _ = capsys.readouterr()
    assert "differ, first after rollout 1 of 2" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "CartPole-v7"], "did you mean CartPole-v1"),
        (["--env", "CartPole-v1", "-n", "0"], "must be at least 1"),
        (["--env", "CartPole-v1", "--algo", "ppo"], "klip_ppo"),
        (["--env", "CartPole-v1", "-params", "penalty:'hrad'"], "did you mean 'hard'"),
        ([], "--env"),
    ],
)
def test_bad_input(capsys, arguments, message):
    assert main(["verify", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""

"""Short training runs whose inside can be looked at, and the penalties to run them with."""

import copy
import io

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from sb3_klip.penalties import available_penalties

#: Every registered penalty as it is by default, then what the defaults leave out.
FAMILY = {
    **{name: {"name": name} for name in available_penalties()},
    "scheduled": {"name": "linear_ramp", "softness": "lin_0.3", "clip_range": {"start": 0.2, "end": 0.05}},
    "kl_fixed-sample": {"name": "kl_fixed", "divergence": "sample", "beta": 0.3},
    "kl_fixed-k3": {"name": "kl_fixed", "divergence": "k3", "beta": "lin_2"},
    "kl_adaptive-k3": {"name": "kl_adaptive", "divergence": "k3", "target": 1e-5, "beta_init": 0.5},
    "kl_adaptive-narrow": {"name": "kl_adaptive", "target": 1e-5, "factor": 3, "tolerance": 1.1},
    "nested": {
        "name": "position_aware",
        "early": {"name": "asymmetric", "upper": "sapo", "lower": "kl_adaptive", "by": "advantage"},
        "late": {"name": "asymmetric", "upper": {"name": "sigmoid", "softness": "lin_0.1"}, "lower": "spo"},
        "midpoint": 12,
        "width": 4,
    },
}

#: What every update logs of its penalty.
DIAGNOSTICS = {
    *("klip/frac_in_band", "klip/frac_kill", "klip/frac_pass", "klip/gate_mean", "klip/beta_abs_mean"),
    *(f"klip/beta_p{percent}" for percent in ("01", "05", "25", "50", "75", "95", "99")),
}


class UpdateValues(BaseCallback):
    """Keeps what each update logged under ``train/`` and ``klip/``."""

    def __init__(self):
        super().__init__()
        self.updates = []

    def _on_step(self):
        return True

    def _keep(self):
        # SB3 writes the log of an update, and forgets it, at the end of the rollout after it
        values = self.logger.name_to_value
        if "train/loss" in values:
            self.updates.append({key: value for key, value in values.items() if key.startswith(("train/", "klip/"))})

    _on_rollout_start = _on_training_end = _keep


class Snapshots(UpdateValues):
    """Keeps also, of each update, a copy of the rollout and of the policy before it and after it."""

    def __init__(self):
        super().__init__()
        self.rollouts, self.before, self.after = [], [], []

    def _on_rollout_end(self):
        self.rollouts.append(copy.deepcopy(self.model.rollout_buffer))
        self.before.append(state_of(self.model.policy))

    def _keep(self):
        super()._keep()
        if self.before:
            self.after.append(state_of(self.model.policy))

    _on_rollout_start = _on_training_end = _keep


class Break(UpdateValues):
    """Saves all that a run needs to go on, when a number of updates is over: model, environment, generators."""

    def __init__(self, after_updates):
        super().__init__()
        self.after_updates = after_updates

    def _on_rollout_start(self):
        self._keep()
        if len(self.updates) == self.after_updates:
            self.file = io.BytesIO()
            self.model.save(self.file)
            self.env = copy.deepcopy(self.model.env)
            self.penalty_state = copy.deepcopy(self.model.penalty.state_dict())
            self.random_states = th.get_rng_state(), np.random.get_state()

    def resume(self, algorithm, total_timesteps, **arguments):
        """The saved model after the rest of its training, and what its updates logged."""
        self.file.seek(0)
        env = copy.deepcopy(self.env)
        model = quiet(algorithm.load(self.file, env=env, device="cpu", force_reset=False, **arguments))
        th.set_rng_state(self.random_states[0])
        np.random.set_state(self.random_states[1])
        log = UpdateValues()
        model.learn(total_timesteps - model.num_timesteps, reset_num_timesteps=False, callback=log)
        return model, log.updates


def state_of(module):
    """A copy of the parameters and buffers of a module."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def quiet(model):
    """The model, with a logger that keeps values and writes them nowhere."""
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def updates_of(model, n_rollouts, **arguments):
    """Train for a few rollouts; what each update logged."""
    log = UpdateValues()
    quiet(model).learn(n_rollouts * model.n_steps * model.n_envs, callback=log, **arguments)
    assert len(log.updates) == n_rollouts
    return log.updates


def differences(state, expected):
    """Names of the tensors that are not equal to the last bit."""
    assert state.keys() == expected.keys()
    return [name for name in expected if not th.equal(state[name], expected[name])]


def assert_same_model(model, expected):
    """Parameters and the optimizer's moments are equal to the last bit."""
    different = differences(model.policy.state_dict(), expected.policy.state_dict())
    assert not different, f"not equal to the last bit: {different}"
    moments, expected_moments = (one.policy.optimizer.state_dict()["state"] for one in (model, expected))
    assert moments.keys() == expected_moments.keys()
    different = [index for index in moments if differences(moments[index], expected_moments[index])]
    assert not different, f"moments of these parameters are not equal to the last bit: {different}"


def assert_same_logs(updates, expected, prefix="train/"):
    """What updates logged is equal to the last bit; of ``expected``, the keys with the prefix count."""
    assert len(updates) == len(expected)
    for values, expected_values in zip(updates, expected, strict=True):
        wanted = {key: value for key, value in expected_values.items() if key.startswith(prefix)}
        assert {key for key in values if key.startswith(prefix)} == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_array_equal(values[key], value, err_msg=key)

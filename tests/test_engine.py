"""The fast paths do what the ordinary ones do, to the last bit, and step aside where they cannot."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_klip import KLipPPO
from sb3_klip.engine.optimizer import stepping_together
from sb3_klip.engine.plain_policy import plain_functions, plain_policy

OBSERVATIONS = spaces.Box(-1, 1, (2, 3), np.float64)
ACTION_SPACES = {
    "discrete": spaces.Discrete(5),
    "multi-discrete": spaces.MultiDiscrete([2, 4]),
    "multi-binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1, 1, (3,)),
}


def make_policy(action_space=ACTION_SPACES["box"], observation_space=OBSERVATIONS, cls=ActorCriticPolicy, **kwargs):
    th.manual_seed(0)
    return cls(observation_space, action_space, lambda _: 3e-4, **kwargs)


@pytest.mark.parametrize("activation_fn", [nn.Tanh, nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("net_arch", [[], [8], dict(pi=[8, 7], vf=[6])], ids=str)
@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@pytest.mark.parametrize("n_samples", [1, 37])
def test_plain_functions_are_the_policys(action_space, net_arch, activation_fn, n_samples):
    policy = make_policy(action_space, net_arch=net_arch, activation_fn=activation_fn)
    plain = plain_policy(policy)
    observations = th.randn(n_samples, 2, 3, dtype=th.float64)

    with th.no_grad():
        th.manual_seed(1)
        acted = policy(observations)
        th.manual_seed(1)
        acted_plainly = plain.forward(observations)
    for expected, found in zip(acted, acted_plainly, strict=True):
        assert expected.dtype == found.dtype
        assert th.equal(expected, found)

    actions = acted[0].flatten() if isinstance(action_space, spaces.Discrete) else acted[0].float()
    gradients = []
    for evaluate in (policy.evaluate_actions, plain.evaluate_actions):
        values, log_prob, entropy = evaluate(observations, actions)
        policy.zero_grad()
        (values.sum() + 3 * log_prob.mean() + 0.01 * entropy.mean()).backward()
        gradients.append([values, log_prob, entropy, *(parameter.grad.clone() for parameter in policy.parameters())])
    assert all(th.equal(expected, found) for expected, found in zip(*gradients, strict=True))


class OwnPolicy(ActorCriticPolicy):
    """A user's, which may do anything."""


class OwnExtractor(FlattenExtractor):
    """A user's, which may do anything."""


def with_hook():
    policy = make_policy()
    policy.mlp_extractor.policy_net[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return policy


def with_exchanged_method():
    policy = make_policy()
    policy.evaluate_actions = policy.evaluate_actions
    return policy


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_policy(cls=OwnPolicy),
        lambda: make_policy(features_extractor_class=OwnExtractor),
        lambda: make_policy(share_features_extractor=False),
        lambda: make_policy(use_sde=True),
        lambda: make_policy(activation_fn=nn.Softplus),
        lambda: make_policy(observation_space=spaces.Discrete(4)),
        with_hook,
        with_exchanged_method,
    ],
    ids=["class", "extractor", "two extractors", "gSDE", "activation", "one-hot", "hook", "method"],
)
def test_other_policies_are_left_alone(make):
    policy = make()
    before = {name: vars(policy).get(name) for name in ("forward", "evaluate_actions")}
    with plain_functions(policy):
        assert {name: vars(policy).get(name) for name in before} == before
    assert {name: vars(policy).get(name) for name in before} == before


def test_policy_is_itself_again_afterwards():
    policy = make_policy()
    with pytest.raises(KeyboardInterrupt), plain_functions(policy):
        assert "forward" in vars(policy)
        raise KeyboardInterrupt
    assert not {"forward", "evaluate_actions"} & vars(policy).keys()


def test_parameters_that_a_callback_loads_in_a_rollout_are_used():
    policy = make_policy()
    other = make_policy()
    with th.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    observations = th.randn(4, 2, 3)
    with plain_functions(policy), th.no_grad():
        policy.load_state_dict(other.state_dict())
        assert th.equal(policy(observations)[1], other(observations)[1])


def test_training_really_takes_the_plain_path(monkeypatch):
    """Without it, the equality with SB3 would not tell anything about it."""
    model = KLipPPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=32, batch_size=16, n_epochs=1, device="cpu")
    for name in ("forward", "evaluate_actions"):
        monkeypatch.setattr(ActorCriticPolicy, name, None)
    model.learn(64)


@pytest.mark.parametrize(
    "optimizer_class", [th.optim.Adam, th.optim.AdamW, th.optim.RMSprop, th.optim.SGD], ids=lambda cls: cls.__name__
)
def test_stepping_together_is_stepping_one_by_one(optimizer_class):
    one_by_one = make_policy()
    together = copy.deepcopy(one_by_one)
    for policy in (one_by_one, together):
        policy.optimizer = optimizer_class(policy.parameters(), lr=1e-2, weight_decay=1e-2)
    for step in range(5):
        for policy in (one_by_one, together):
            th.manual_seed(step)
            for parameter in policy.parameters():
                parameter.grad = th.randn_like(parameter)
        one_by_one.optimizer.step()
        with stepping_together(together.optimizer):
            assert together.optimizer.param_groups[0]["foreach"] is True
            together.optimizer.step()
    assert all(th.equal(a, b) for a, b in zip(one_by_one.parameters(), together.parameters(), strict=True))
    assert one_by_one.optimizer.param_groups[0]["foreach"] is together.optimizer.param_groups[0]["foreach"] is None


def test_a_choice_of_the_users_is_kept():
    policy = make_policy(optimizer_kwargs=dict(foreach=False))
    with stepping_together(policy.optimizer):
        assert policy.optimizer.param_groups[0]["foreach"] is False

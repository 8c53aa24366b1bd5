"""
SB3's multilayer perceptron policy as plain functions of tensors.

On small networks a policy spends its time in modules, hooks and distribution objects, not in arithmetic. These
functions do the same operations on the same tensors in the same order, so every bit is the same, gradients included.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn
from torch.nn import functional as F

from sb3_klip.engine.heads import BernoulliHead, CategoricalHead, GaussianHead, MultiCategoricalHead

Layer = Callable[[th.Tensor], th.Tensor]

#: Modules that have neither parameters nor options, and what they compute.
ACTIVATIONS: dict[type[nn.Module], Layer] = {nn.Tanh: th.tanh, nn.ReLU: F.relu, nn.Sigmoid: th.sigmoid}

#: All that a plain policy may be made of.
PLAIN_MODULES = (FlattenExtractor, MlpExtractor, nn.Sequential, nn.Flatten, nn.Linear, *ACTIVATIONS)

#: SB3's distributions, and the plain functions for each, made from the policy.
HEADS: dict[type[Distribution], Callable[[Any], Any]] = {
    CategoricalDistribution: lambda policy: CategoricalHead(),
    MultiCategoricalDistribution: lambda policy: MultiCategoricalHead(policy.action_dist.action_dims),
    BernoulliDistribution: lambda policy: BernoulliHead(),
    DiagGaussianDistribution: lambda policy: GaussianHead(policy.log_std),
}


class PlainPolicy:
    """
    The functions of an :class:`~stable_baselines3.common.policies.ActorCriticPolicy` that training calls.

    It holds the policy's own parameters, not copies. Make one with :func:`plain_policy`, which knows for which
    policies these functions are the same.

    :param policy: the policy
    """

    def __init__(self, policy: ActorCriticPolicy):
        self.actor = [*_layers(policy.mlp_extractor.policy_net), _linear(policy.action_net)]
        self.critic = [*_layers(policy.mlp_extractor.value_net), _linear(policy.value_net)]
        self.head = HEADS[type(policy.action_dist)](policy)
        self.action_shape: tuple[int, ...] = policy.action_space.shape or ()

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Act, as the policy's ``forward`` does while a rollout is collected.

        :param obs: observations, shape ``(B, ...)``
        :param deterministic: must be false: nobody asks for the mode while collecting a rollout
        :return: actions ``(B, ...)``, values ``(B, 1)``, log-probabilities of the actions ``(B,)``
        """
        assert not deterministic
        features = obs.float().flatten(1)
        values = _apply(self.critic, features)
        params = self.head.params(_apply(self.actor, features))
        actions = self.head.sample(params)
        log_prob = self.head.log_prob(params, actions)
        return actions.reshape((-1, *self.action_shape)), values, log_prob

    def evaluate_actions(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param obs: observations, shape ``(B, ...)``
        :param actions: actions, shape ``(B,)`` or ``(B, n)``
        :return: values ``(B, 1)``, log-probabilities of the actions ``(B,)``, entropies ``(B,)``
        """
        features = obs.float().flatten(1)
        params = self.head.params(_apply(self.actor, features))
        log_prob = self.head.log_prob(params, actions)
        return _apply(self.critic, features), log_prob, self.head.entropy(params)


def plain_policy(policy: ActorCriticPolicy) -> PlainPolicy | None:
    """
    :param policy: any policy
    :return: its plain functions, or ``None`` if it does anything that they do not: a class or a network of one's
        own, images or dictionaries, gSDE, hooks, methods that were exchanged
    """
    networks = [policy.features_extractor, policy.mlp_extractor, policy.action_net, policy.value_net]
    is_plain = (
        type(policy) is ActorCriticPolicy
        and isinstance(policy.observation_space, spaces.Box)
        and policy.share_features_extractor
        and type(policy.features_extractor) is FlattenExtractor
        and type(policy.mlp_extractor) is MlpExtractor
        and type(policy.action_net) is type(policy.value_net) is nn.Linear
        and type(policy.action_dist) in HEADS
        and all(type(module) in PLAIN_MODULES for network in networks for module in network.modules())
        and not vars(policy).keys() & {"forward", "evaluate_actions"}
        and not any(_has_hooks(module) for network in [policy, *networks] for module in network.modules())
    )
    return PlainPolicy(policy) if is_plain else None


@contextmanager
def plain_functions(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    While in this context, what training calls of a policy are the plain functions, if it has them.

    :param policy: the policy that collects a rollout, or is updated
    """
    plain = plain_policy(policy)
    if plain is None:
        yield
        return
    policy.forward, policy.evaluate_actions = plain.forward, plain.evaluate_actions  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        # Uncovers the methods of the class again
        del policy.forward, policy.evaluate_actions


def _apply(layers: list[Layer], features: th.Tensor) -> th.Tensor:
    for layer in layers:
        features = layer(features)
    return features


def _layers(network: nn.Module) -> list[Layer]:
    return [_linear(module) if isinstance(module, nn.Linear) else ACTIVATIONS[type(module)] for module in network.children()]


def _linear(module: Any) -> Layer:
    weight, bias = module.weight, module.bias
    return lambda features: F.linear(features, weight, bias)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)

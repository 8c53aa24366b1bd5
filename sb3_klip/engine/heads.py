"""Action distributions as plain functions: the arithmetic of SB3's distribution objects, in the same order."""

import math
from collections.abc import Sequence

import torch as th
from torch.nn import functional as F

HALF_LOG_TWO_PI = math.log(math.sqrt(2 * math.pi))


class CategoricalHead:
    """``Discrete`` actions, from their logits."""

    def params(self, latent: th.Tensor) -> th.Tensor:
        """
        :param latent: output of the action net, shape ``(B, n)``
        :return: normalized logits, shape ``(B, n)``
        """
        return latent - latent.logsumexp(dim=-1, keepdim=True)

    def sample(self, params: th.Tensor) -> th.Tensor:
        """
        :param params: what :meth:`params` returned
        :return: actions, shape ``(B,)``
        """
        return th.multinomial(F.softmax(params, dim=-1), 1, True).squeeze(-1)

    def log_prob(self, params: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param params: what :meth:`params` returned
        :param actions: actions, shape ``(B,)``
        :return: log-probability of the actions, shape ``(B,)``
        """
        return params.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self, params: th.Tensor) -> th.Tensor:
        """
        :param params: what :meth:`params` returned
        :return: entropy in nats, shape ``(B,)``
        """
        logits = th.clamp(params, min=th.finfo(params.dtype).min)
        return -(logits * F.softmax(params, dim=-1)).sum(-1)


class MultiCategoricalHead:
    """
    ``MultiDiscrete`` actions, from their logits side by side.

    :param action_dims: number of choices of each action
    """

    def __init__(self, action_dims: Sequence[int]):
        self.action_dims = list(action_dims)
        self.head = CategoricalHead()

    def params(self, latent: th.Tensor) -> list[th.Tensor]:
        return [self.head.params(split) for split in th.split(latent, self.action_dims, dim=1)]

    def sample(self, params: list[th.Tensor]) -> th.Tensor:
        return th.stack([self.head.sample(logits) for logits in params], dim=1)

    def log_prob(self, params: list[th.Tensor], actions: th.Tensor) -> th.Tensor:
        columns = zip(params, th.unbind(actions, dim=1), strict=True)
        return th.stack([self.head.log_prob(logits, column) for logits, column in columns], dim=1).sum(dim=1)

    def entropy(self, params: list[th.Tensor]) -> th.Tensor:
        return th.stack([self.head.entropy(logits) for logits in params], dim=1).sum(dim=1)


class BernoulliHead:
    """``MultiBinary`` actions, from the logit of each."""

    def params(self, latent: th.Tensor) -> th.Tensor:
        return latent

    def sample(self, params: th.Tensor) -> th.Tensor:
        return th.bernoulli(th.sigmoid(params))

    def log_prob(self, params: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return (-F.binary_cross_entropy_with_logits(params, actions, reduction="none")).sum(dim=1)

    def entropy(self, params: th.Tensor) -> th.Tensor:
        return F.binary_cross_entropy_with_logits(params, th.sigmoid(params), reduction="none").sum(dim=1)


class GaussianHead:
    """
    ``Box`` actions, from their means and a standard deviation that does not depend on the observation.

    :param log_std: the policy's parameter, shape ``(n,)``
    """

    def __init__(self, log_std: th.Tensor):
        self.log_std = log_std

    def params(self, latent: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return latent, th.ones_like(latent) * self.log_std.exp()

    def sample(self, params: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        mean, std = params
        return mean + th.normal(th.zeros_like(mean), th.ones_like(mean)) * std

    def log_prob(self, params: tuple[th.Tensor, th.Tensor], actions: th.Tensor) -> th.Tensor:
        mean, std = params
        return (-((actions - mean) ** 2) / (2 * std**2) - std.log() - HALF_LOG_TWO_PI).sum(dim=1)

    def entropy(self, params: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        _, std = params
        return (0.5 + 0.5 * math.log(2 * math.pi) + th.log(std)).sum(dim=1)

"""The policy as it was when the rollout was collected, for the analytic KL divergence."""

import copy
from typing import TypeVar

import torch as th
from stable_baselines3.common.distributions import Distribution, kl_divergence
from stable_baselines3.common.policies import ActorCriticPolicy

SelfPolicy = TypeVar("SelfPolicy", bound=ActorCriticPolicy)


def frozen_copy(policy: SelfPolicy) -> SelfPolicy:
    """
    :param policy: the policy
    :return: a copy that stays as the policy is now, without its optimizer
    """
    # The distribution object is copied shallowly: gSDE keeps tensors with gradient in it, which cannot be copied
    # deeply, and both policies only ever replace what it holds.
    memo = {id(policy.optimizer): None, id(policy.action_dist): copy.copy(policy.action_dist)}
    return copy.deepcopy(policy, memo)  # type: ignore[arg-type]


def analytic_kl(old: Distribution, new: Distribution) -> th.Tensor:
    """
    ``KL(π_old(·|s) || π_new(·|s))`` of SB3's action distributions.

    :param old: action distributions of the old policy, for ``B`` observations
    :param new: action distributions of the new policy, for the same observations
    :return: divergence per observation in nats, shape ``(B,)``
    :raises ValueError: if the distribution has no closed form
    """
    try:
        divergence = kl_divergence(old, new)
    except (NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"the KL divergence of {type(new).__name__} has no closed form; "
            'choose a sampled one: penalty_kwargs=dict(divergence="k3")'
        ) from error
    # Gaussian and Bernoulli distributions keep one divergence per action dimension
    return divergence.flatten(1).sum(dim=1) if divergence.dim() > 1 else divergence

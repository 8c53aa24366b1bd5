"""The policy as it was when the rollout was collected, for the analytic KL divergence."""

import copy
from typing import TypeVar

import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy

SelfPolicy = TypeVar("SelfPolicy", bound=ActorCriticPolicy)


def frozen_copy(policy: SelfPolicy) -> SelfPolicy:
    """
    :param policy: the policy
    :return: a copy that stays as the policy is now, in the mode in which rollouts are collected, without its
        optimizer
    """
    # The distribution object is copied shallowly: gSDE keeps tensors with gradient in it, which cannot be copied
    # deeply, and both policies only ever replace what it holds.
    memo = {id(policy.optimizer): None, id(policy.action_dist): copy.copy(policy.action_dist)}
    frozen = copy.deepcopy(policy, memo)  # type: ignore[arg-type]
    frozen.set_training_mode(False)
    return frozen


def analytic_kl(old: Distribution, new: Distribution) -> th.Tensor:
    """
    ``KL(π_old(·|s) || π_new(·|s))`` of SB3's and sb3-contrib's action distributions.

    :param old: action distributions of the old policy, for ``B`` observations
    :param new: action distributions of the new policy, for the same observations
    :return: divergence per observation in nats, shape ``(B,)``
    :raises ValueError: if the distribution has no closed form
    """
    divergences = []
    for old_part, new_part in zip(independent_parts(old), independent_parts(new), strict=True):
        try:
            divergence = th.distributions.kl_divergence(old_part, new_part)
        except NotImplementedError as error:
            raise ValueError(
                f"the KL divergence of {type(new).__name__} has no closed form; "
                'choose a sampled one with penalty_kwargs=dict(divergence="k3")'
            ) from error
        # Gaussian and Bernoulli distributions hold one divergence per action dimension
        divergences.append(divergence.flatten(1).sum(dim=1) if divergence.dim() > 1 else divergence)
    return th.stack(divergences).sum(dim=0)


def independent_parts(distribution: Distribution) -> list[th.distributions.Distribution]:
    """
    :param distribution: an action distribution
    :return: the PyTorch distributions of which it is the product
    """
    # sb3-contrib's masked distributions over several actions keep theirs under another name than SB3's
    parts = getattr(distribution, "distributions", None) or distribution.distribution
    return parts if isinstance(parts, list) else [parts]

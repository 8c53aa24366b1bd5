"""The loss of one minibatch: PPO's, with the penalty's effective advantage in the place of the clipping."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_klip.penalties import Penalty, PenaltyInputs


@dataclass(frozen=True)
class UpdateSettings:
    """
    What stays the same during one update, with SB3's names and meanings.

    :param clip_range: half-width ε of the band, in ratio units
    :param clip_range_vf: clip range of the value function, ``None`` for no clipping
    :param ent_coef: coefficient of the entropy bonus
    :param vf_coef: coefficient of the value loss
    :param normalize_advantage: whether each minibatch's advantages are normalized
    :param progress_remaining: training progress, from 1 at the beginning to 0 at the end
    """

    clip_range: float
    clip_range_vf: float | None
    ent_coef: float
    vf_coef: float
    normalize_advantage: bool
    progress_remaining: float


class Minibatch(NamedTuple):
    """
    What the rollout holds and what the policy says now about the same ``B`` samples.

    :param values: values by the policy now, shape ``(B,)``, with gradient
    :param log_prob: log-probability of the actions by the policy now, shape ``(B,)``, with gradient
    :param entropy: entropy of the policy now, shape ``(B,)``, with gradient; ``None`` without a closed form
    :param old_values: values when the rollout was collected, shape ``(B,)``
    :param old_log_prob: log-probability of the actions when the rollout was collected, shape ``(B,)``
    :param advantages: advantages as the rollout holds them, shape ``(B,)``
    :param returns: TD(λ) returns, shape ``(B,)``
    :param positions: steps since the episode began, shape ``(B,)``, where the penalty asks for them
    :param kl: analytic ``KL(π_old || π_new)``, shape ``(B,)``, with gradient, where the penalty asks for it
    :param was_padded: whether the samples were taken out of padded sequences, see :func:`value_loss`
    """

    values: th.Tensor
    log_prob: th.Tensor
    entropy: th.Tensor | None
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    positions: th.Tensor | None = None
    kl: th.Tensor | None = None
    was_padded: bool = False

    def without_padding(self, valid: th.Tensor) -> "Minibatch":
        """
        :param valid: which entries are samples, bool tensor of shape ``(B,)``
        :return: the minibatch of these samples alone
        """
        samples = {name: tensor[valid] for name, tensor in self._asdict().items() if isinstance(tensor, th.Tensor)}
        return self._replace(**samples, was_padded=True)


class LossTerms(NamedTuple):
    """
    What an update logs of one minibatch, without gradient: scalars, then tensors of shape ``(B,)``.

    :param policy_loss: the penalty's surrogate, negated and averaged
    :param value_loss: mean squared error of the values
    :param entropy_loss: mean entropy, negated
    :param approx_kl: mean of ``(w - 1) - log w``, SB3's estimate of the KL divergence
    :param clip_fraction: share of samples outside the band
    :param ratio: importance ratios, shape ``(B,)``
    :param advantages: advantages as the update used them, shape ``(B,)``
    :param effective_advantage: what stood in their place in the policy gradient, shape ``(B,)``
    """

    policy_loss: th.Tensor
    value_loss: th.Tensor
    entropy_loss: th.Tensor
    approx_kl: th.Tensor
    clip_fraction: th.Tensor
    ratio: th.Tensor
    advantages: th.Tensor
    effective_advantage: th.Tensor


def ppo_loss(batch: Minibatch, penalty: Penalty, settings: UpdateSettings) -> tuple[th.Tensor, LossTerms]:
    """
    ``-E[sg(Â_eff)·w] + E[c·KL] + ent_coef·entropy_loss + vf_coef·value_loss``, sg meaning "no gradient".

    Its gradient is that of ``-E[w·Â - β·D]`` for every penalty, and with the hard gate it is SB3's to the last
    bit, for every batch size: each factor is multiplied in the order in which SB3's backward does it.
    Source: Colletti & Holzinger 2026, arXiv:2606.23932, Theorem 1.

    :param batch: the minibatch
    :param penalty: the shape of β_t
    :param settings: what stays the same during the update
    :return: the loss, to be minimised, and what is to be logged of it
    """
    ratio = importance_ratio(batch)

    with th.no_grad():
        inputs = penalty_inputs(batch, ratio.detach(), settings)
        effective_advantage = penalty.effective_advantage(inputs)
        # No shape may push a sample's gradient w·Â_eff out of the range of floats, see saturate().
        largest = th.finfo(ratio.dtype).max ** 0.8 / inputs.ratio
        effective_advantage = th.clamp(effective_advantage, -largest, largest)
        surrogate_loss = -penalty.surrogate(inputs).mean()

    policy_loss = -(effective_advantage * ratio).mean()
    if batch.kl is not None:
        kl_loss = (penalty.kl_coef(inputs) * batch.kl).mean()
        policy_loss, surrogate_loss = policy_loss + kl_loss, surrogate_loss + kl_loss.detach()

    critic_loss = value_loss(batch, settings.clip_range_vf)
    # Without an analytical form the entropy is approximated by the log-probability of the actions
    entropy_loss = -th.mean(-batch.log_prob) if batch.entropy is None else -th.mean(batch.entropy)
    loss = policy_loss + settings.ent_coef * entropy_loss + settings.vf_coef * critic_loss

    with th.no_grad():
        terms = LossTerms(
            policy_loss=surrogate_loss,
            value_loss=critic_loss.detach(),
            entropy_loss=entropy_loss.detach(),
            # Schulman's low-variance estimate, http://joschu.net/blog/kl-approx.html
            approx_kl=th.mean((inputs.ratio - 1) - (batch.log_prob - batch.old_log_prob)),
            clip_fraction=th.mean((th.abs(inputs.ratio - 1) > settings.clip_range).float()),
            ratio=inputs.ratio,
            advantages=inputs.advantages,
            effective_advantage=effective_advantage,
        )
    return loss, terms


def importance_ratio(batch: Minibatch) -> th.Tensor:
    """
    :param batch: the minibatch
    :return: ``w = π_new(a|s) / π_old(a|s)``, 1 at the first minibatch of an update, shape ``(B,)``, with gradient
    """
    return th.exp(saturate(batch.log_prob - batch.old_log_prob))


def penalty_inputs(batch: Minibatch, ratio: th.Tensor, settings: UpdateSettings) -> PenaltyInputs:
    """
    :param batch: the minibatch
    :param ratio: its importance ratios, shape ``(B,)``, without gradient
    :param settings: what stays the same during the update
    :return: what the penalty is called with, the advantages normalized if they are to be
    """
    advantages = batch.advantages
    # The standard deviation of a single sample is not defined, see SB3's GH issue #325
    if settings.normalize_advantage and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return PenaltyInputs(ratio, advantages, settings.clip_range, batch.positions, settings.progress_remaining)


def value_loss(batch: Minibatch, clip_range_vf: float | None) -> th.Tensor:
    """
    Mean squared error between the values and the TD(λ) returns, the values optionally kept near the old ones.

    :param batch: the minibatch
    :param clip_range_vf: the values may differ by this much from the old ones, in units of the reward;
        ``None`` for no clipping
    :return: scalar
    """
    values = batch.values
    if clip_range_vf is not None:
        values = batch.old_values + th.clamp(values - batch.old_values, -clip_range_vf, clip_range_vf)
    if batch.was_padded:
        # RecurrentPPO's own form: the same value as below, but its backward rounds differently.
        return th.mean((batch.returns - values) ** 2)
    return F.mse_loss(batch.returns, values)


def saturate(log_ratio: th.Tensor) -> th.Tensor:
    """
    Keep ``exp(log_ratio)`` a normal float, without touching the gradient or any bit of a log-ratio in range.

    In float32 ``exp`` overflows at 88.7. A single such sample would give ``inf·0 = NaN`` in the backward pass
    even where its gate is closed; held at 78.6 it is killed, or kept, like any other, and a gate has some
    decades left to compute with it. The lower side is held too, because some penalties divide by the ratio.

    :param log_ratio: ``log π_new - log π_old``, shape ``(B,)``
    :return: the same, held within the range of the dtype, shape ``(B,)``
    """
    limit = -0.9 * math.log(th.finfo(log_ratio.dtype).tiny)
    # The difference is 0, and leaves the gradient at 1 where the one of a clamp would be 0.
    return th.clamp(log_ratio, -limit, limit).detach() + (log_ratio - log_ratio.detach())

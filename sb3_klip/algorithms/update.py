"""The one update that all algorithms of this package share."""

import copy
import io
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples, Schedule
from stable_baselines3.common.utils import explained_variance

from sb3_klip.algorithms.loss import Minibatch, UpdateSettings, ppo_loss
from sb3_klip.algorithms.update_log import UpdateLog
from sb3_klip.penalties import Penalty, make_penalty
from sb3_klip.penalties.checks import check_output, check_penalty
from sb3_klip.penalties.registry import dump_penalty, load_penalty


class KLipUpdate(OnPolicyAlgorithm):
    """
    PPO's update with a β_t penalty in the place of the clipping, to be mixed into an SB3 algorithm before it.

    The algorithm brings the collection of rollouts and the arguments; this class brings :meth:`train` and keeps
    the penalty. What differs between the algorithms is how a minibatch is evaluated
    (:meth:`_evaluate_actions`) and which of its samples are padding (:meth:`_valid_samples`).
    """

    # What the SB3 algorithm brings
    batch_size: int
    n_epochs: int
    clip_range: Schedule
    clip_range_vf: Schedule | None
    normalize_advantage: bool
    target_kl: float | None

    #: The shape of β_t.
    penalty: Penalty
    # Only between `load(..., penalty=..., penalty_kwargs=...)` and `_setup_model` is this not None
    penalty_kwargs: dict[str, Any] | None = None

    def _setup_model(self) -> None:
        super()._setup_model()
        # `load` puts here what `save` stored, or what its caller gave in its place
        penalty: Any = self.penalty
        if isinstance(penalty, Mapping) and "spec" in penalty:
            penalty = load_penalty(penalty)
        self.penalty = make_penalty(penalty, **(self.penalty_kwargs or {}))
        self.penalty_kwargs = None
        check_penalty(self.penalty)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        # SB3 writes what is plain JSON as JSON and pickles the rest: the penalty goes in as its spec and state,
        # so that it is readable in the file and needs no unpickling.
        penalty = self.penalty
        self.penalty = dump_penalty(penalty)  # type: ignore[assignment]
        try:
            super().save(path, exclude, include)
        finally:
            self.penalty = penalty

    def train(self) -> None:
        """
        Update the policy with the current rollout: SB3's ``PPO.train`` with another policy loss.
        """
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        settings = self._update_settings()

        log = UpdateLog()
        continue_training = True
        for epoch in range(self.n_epochs):
            log.start_epoch()
            for batch in self._minibatches():
                loss, terms = ppo_loss(batch, self.penalty, settings)
                if not log.terms:
                    check_output(self.penalty, "effective_advantage", terms.effective_advantage, terms.ratio)
                log.add(terms)

                if self.target_kl is not None:
                    approx_kl = terms.approx_kl.cpu().numpy()
                    if approx_kl > 1.5 * self.target_kl:
                        continue_training = False
                        if self.verbose >= 1:
                            print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl:.2f}")
                        break

                self.policy.optimizer.zero_grad()
                loss.backward()
                th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()

            self._n_updates += 1
            if not continue_training:
                break

        log.record(self.logger, settings)
        buffer = self.rollout_buffer
        self.logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _update_settings(self) -> UpdateSettings:
        progress_remaining = self._current_progress_remaining
        return UpdateSettings(
            clip_range=self.clip_range(progress_remaining),
            clip_range_vf=None if self.clip_range_vf is None else self.clip_range_vf(progress_remaining),
            ent_coef=self.ent_coef,
            vf_coef=self.vf_coef,
            normalize_advantage=self.normalize_advantage,
            progress_remaining=progress_remaining,
        )

    def _minibatches(self) -> Iterator[Minibatch]:
        """
        One pass over the rollout.

        :return: minibatches in random order, evaluated by the policy as it is when each is asked for
        """
        for rollout_data in self.rollout_buffer.get(self.batch_size):
            yield self._evaluate(rollout_data)

    def _evaluate(self, rollout_data: RolloutBufferSamples) -> Minibatch:
        actions = rollout_data.actions
        if isinstance(self.action_space, spaces.Discrete):
            # Convert discrete action from float to long
            actions = actions.long().flatten()
        values, log_prob, entropy = self._evaluate_actions(self.policy, rollout_data, actions)
        batch = Minibatch(
            values=values.flatten(),
            log_prob=log_prob,
            entropy=entropy,
            old_values=rollout_data.old_values,
            old_log_prob=rollout_data.old_log_prob,
            advantages=rollout_data.advantages,
            returns=rollout_data.returns,
        )
        return batch

    def _evaluate_actions(
        self, policy: ActorCriticPolicy, rollout_data: Any, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        What a policy says of the actions of a minibatch; an algorithm with other rollouts overrides this.

        :param policy: the policy
        :param rollout_data: one minibatch as the rollout buffer gives it
        :param actions: its actions, in the form that the policy expects
        :return: values, log-probability of the actions, entropy (``None`` without a closed form)
        """
        return policy.evaluate_actions(rollout_data.observations, actions)

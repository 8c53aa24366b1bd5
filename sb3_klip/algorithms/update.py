"""The one update that all algorithms of this package share."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import explained_variance

from sb3_klip.algorithms.loss import Minibatch, UpdateSettings, importance_ratio, penalty_inputs, ppo_loss
from sb3_klip.algorithms.old_policy import analytic_kl, frozen_copy
from sb3_klip.algorithms.penalized import PenalizedAlgorithm
from sb3_klip.algorithms.positions import minibatches_with_indices, positions_in_episode
from sb3_klip.algorithms.update_log import UpdateLog
from sb3_klip.engine.optimizer import stepping_together
from sb3_klip.penalties.checks import check_outputs
from sb3_klip.penalties.divergence import ANALYTIC, SAMPLED


class KLipUpdate(PenalizedAlgorithm):
    """
    PPO's update with a β_t penalty in the place of the clipping, to be mixed into an SB3 algorithm before it.

    The algorithm brings the collection of rollouts and the arguments; this class brings :meth:`train`. What differs
    between the algorithms is how a minibatch is evaluated (:meth:`_evaluate_actions`) and which of its entries are
    padding (:meth:`_valid_samples`, :meth:`_minibatch_positions`).
    """

    # What the SB3 algorithm brings; `Any` where the algorithms declare different types
    batch_size: Any
    n_epochs: int
    clip_range: Any
    clip_range_vf: Any
    normalize_advantage: bool
    target_kl: float | None

    # Positions in the episode, where the penalty asks for them: of the rollout, shape (n_steps, n_envs), and of
    # the step after it, shape (n_envs,)
    _rollout_positions: np.ndarray
    _next_positions: np.ndarray | None = None

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_rollout_positions"]

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        continue_training = super().collect_rollouts(*args, **kwargs)
        if self.penalty.uses_positions:
            # A callback may have ended the rollout early; SB3 drops the step that it was called for
            episode_starts = self.rollout_buffer.episode_starts[: self.rollout_buffer.pos]
            first = self._next_positions
            if first is None or len(first) != self.n_envs:
                first = np.zeros(self.n_envs)
            self._rollout_positions, self._next_positions = positions_in_episode(episode_starts, first)
        return continue_training

    def train(self) -> None:
        """
        Update the policy with the current rollout: SB3's ``PPO.train`` with another policy loss.
        """
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        settings = self._update_settings()
        old_policy = frozen_copy(self.policy) if self.penalty.uses_kl else None

        with stepping_together(self.policy.optimizer):
            log = self._run_epochs(settings, old_policy)

        log.record(self.logger, settings)
        buffer = self.rollout_buffer
        self.logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

        # Kept, because several parts of a penalty may ask for the same divergence
        mean_kl = functools.cache(lambda divergence: self._mean_kl(divergence, old_policy))
        to_log = self.penalty.after_update(mean_kl, settings.progress_remaining)
        for key, value in to_log.items():
            self.logger.record(f"klip/{key}", value)

    def _run_epochs(self, settings: UpdateSettings, old_policy: ActorCriticPolicy | None) -> UpdateLog:
        """
        The epochs of one update, until the policy has moved further than ``target_kl`` allows.

        :param settings: what stays the same during the update
        :param old_policy: the policy that collected the rollout, where the penalty asks for the analytic KL divergence
        :return: what is to be logged
        """
        log = UpdateLog()
        parameters = list(self.policy.parameters())
        continue_training = True
        for epoch in range(self.n_epochs):
            log.start_epoch()
            for batch in self._minibatches(old_policy):
                # A penalty that fails must not reach the parameters
                if not log.terms:
                    self._check_penalty(batch, settings)
                loss, terms = ppo_loss(batch, self.penalty, settings)
                if not th.isfinite(loss):
                    self._check_penalty(batch, settings)
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
                th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
                self.policy.optimizer.step()

            self._n_updates += 1
            if not continue_training:
                break
        return log

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

    def _check_penalty(self, batch: Minibatch, settings: UpdateSettings) -> None:
        with th.no_grad():
            check_outputs(self.penalty, penalty_inputs(batch, importance_ratio(batch), settings))

    def _minibatches(self, old_policy: ActorCriticPolicy | None) -> Iterator[Minibatch]:
        """
        One pass over the rollout.

        :param old_policy: the policy that collected it, where the penalty asks for the analytic KL divergence
        :return: minibatches in random order, each evaluated by the policy as it is when the minibatch is asked for
        """
        if not self.penalty.uses_positions:
            for rollout_data in self.rollout_buffer.get(self.batch_size):
                yield self._evaluate(rollout_data, old_policy)
            return
        positions = self.rollout_buffer.swap_and_flatten(self._rollout_positions)
        for rollout_data, indices in minibatches_with_indices(self.rollout_buffer, self.batch_size):
            yield self._evaluate(rollout_data, old_policy, self._minibatch_positions(positions[indices].flatten()))

    def _evaluate(
        self, rollout_data: Any, old_policy: ActorCriticPolicy | None, positions: th.Tensor | None = None
    ) -> Minibatch:
        """
        Put together what the rollout holds and what the policy says now.

        :param rollout_data: one minibatch as the rollout buffer gives it
        :param old_policy: the policy that collected it, where the penalty asks for the analytic KL divergence
        :param positions: the steps since the episodes began, where the penalty asks for them
        :return: the same samples, evaluated, padding left out
        """
        actions = rollout_data.actions
        if isinstance(self.action_space, spaces.Discrete):
            # Convert discrete action from float to long
            actions = actions.long().flatten()
        values, log_prob, entropy = self._evaluate_actions(self.policy, rollout_data, actions)
        kl = None
        if old_policy is not None:
            with th.no_grad():
                self._evaluate_actions(old_policy, rollout_data, actions)
            # Evaluating actions leaves their distribution in the policy
            kl = analytic_kl(old_policy.action_dist, self.policy.action_dist)
        batch = Minibatch(
            values=values.flatten(),
            log_prob=log_prob,
            entropy=entropy,
            old_values=rollout_data.old_values,
            old_log_prob=rollout_data.old_log_prob,
            advantages=rollout_data.advantages,
            returns=rollout_data.returns,
            positions=positions,
            kl=kl,
        )
        valid = self._valid_samples(rollout_data)
        return batch if valid is None else batch.without_padding(valid)

    def _evaluate_actions(
        self, policy: Any, rollout_data: Any, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        What a policy says of the actions of a minibatch. An algorithm with other rollouts overrides this.

        :param policy: the policy
        :param rollout_data: one minibatch as the rollout buffer gives it
        :param actions: its actions, in the form that the policy expects
        :return: values, log-probability of the actions, entropy (``None`` without a closed form)
        """
        return policy.evaluate_actions(rollout_data.observations, actions)

    def _valid_samples(self, rollout_data: Any) -> th.Tensor | None:
        """
        Which entries of a minibatch are samples. An algorithm that pads its minibatches overrides this.

        :param rollout_data: one minibatch as the rollout buffer gives it
        :return: bool tensor of shape ``(B,)``, ``None`` if all are
        """
        return None

    def _minibatch_positions(self, positions: np.ndarray) -> th.Tensor:
        """
        Bring positions into the order of the minibatch. An algorithm that pads its minibatches overrides this.

        :param positions: positions of the minibatch's transitions in their episodes
        :return: the same on the algorithm's device, one for each entry of the minibatch
        """
        return th.as_tensor(positions, device=self.device)

    def _mean_kl(self, divergence: str, old_policy: ActorCriticPolicy | None) -> float:
        """
        How far an update moved the policy, averaged over the rollout.

        :param divergence: one of :data:`~sb3_klip.penalties.divergence.DIVERGENCES`
        :param old_policy: the policy before the update, where the divergence is the analytic one
        :return: mean divergence in nats
        """
        # Looking must not change what comes after it: neither what is sampled next nor batch norm's statistics
        random_state = np.random.get_state()
        self.policy.set_training_mode(False)
        with th.no_grad():
            divergences = [sample_divergence(divergence, batch) for batch in self._minibatches(old_policy)]
        self.policy.set_training_mode(True)
        np.random.set_state(random_state)
        return th.cat(divergences).mean().item()


def sample_divergence(divergence: str, batch: Minibatch) -> th.Tensor:
    """
    :param divergence: one of :data:`~sb3_klip.penalties.divergence.DIVERGENCES`
    :param batch: a minibatch, with its analytic KL divergence where that is asked for
    :return: divergence between the old and the new policy per sample, in nats, shape ``(B,)``
    """
    if divergence == ANALYTIC:
        assert batch.kl is not None
        return batch.kl
    return SAMPLED[divergence].value(batch.log_prob - batch.old_log_prob)

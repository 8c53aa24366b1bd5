"""RecurrentKLipPPO: sb3-contrib's RecurrentPPO with a configurable β_t penalty."""

from typing import Any, TypeVar

import numpy as np
import torch as th
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_klip.algorithms.update import KLipUpdate
from sb3_klip.penalties import Penalty

SelfRecurrentKLipPPO = TypeVar("SelfRecurrentKLipPPO", bound="RecurrentKLipPPO")


class RecurrentKLipPPO(KLipUpdate, RecurrentPPO):
    """
    :class:`~sb3_klip.KLipPPO` with a policy that has a memory (LSTM), for partially observed environments.

    The default, ``"hard"``, is sb3-contrib's RecurrentPPO to the last bit, except that a minibatch of one sample, whose
    advantage the original normalizes to NaN, is left as it is. Minibatches are sequences padded to
    one length; the padding counts neither in the loss nor in what is logged.

    Paper: Colletti & Holzinger 2026, https://arxiv.org/abs/2606.23932

    All arguments that are not described here are those of :class:`sb3_contrib.RecurrentPPO`, with the same defaults.

    :param policy: the policy model to use (``"MlpLstmPolicy"``, ``"CnnLstmPolicy"``, ``"MultiInputLstmPolicy"``,
        a class)
    :param env: the environment to learn from, or its id
    :param penalty: shape of β_t, as for :class:`~sb3_klip.KLipPPO`
    :param penalty_kwargs: parameters of the shape, where ``penalty`` does not hold them
    :raises ValueError: for an unknown penalty, or a parameter that is not the shape's or out of its range
    """

    def __init__(
        self,
        policy: str | type[RecurrentActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        batch_size: int | None = 128,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        penalty: str | dict[str, Any] | Penalty = "hard",
        penalty_kwargs: dict[str, Any] | None = None,
    ):
        # First, so that a wrong penalty is noticed before an environment is made
        self._set_penalty(penalty, penalty_kwargs)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def learn(
        self: SelfRecurrentKLipPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "RecurrentKLipPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfRecurrentKLipPPO:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    def _evaluate_actions(
        self, policy: Any, rollout_data: Any, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        return policy.evaluate_actions(
            rollout_data.observations, actions, rollout_data.lstm_states, rollout_data.episode_starts
        )

    def _valid_samples(self, rollout_data: Any) -> th.Tensor:
        return rollout_data.mask > 1e-8

    def _minibatch_positions(self, positions: np.ndarray) -> th.Tensor:
        return self.rollout_buffer.pad_and_flatten(positions)  # type: ignore[attr-defined]

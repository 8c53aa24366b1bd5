"""KLipPPO: Stable-Baselines3's PPO with a configurable β_t penalty."""

from contextlib import nullcontext
from typing import Any, TypeVar

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_klip.algorithms.update import KLipUpdate
from sb3_klip.engine.plain_policy import plain_functions
from sb3_klip.penalties import Penalty

SelfKLipPPO = TypeVar("SelfKLipPPO", bound="KLipPPO")


class KLipPPO(KLipUpdate, PPO):
    """
    Proximal Policy Optimization with a KL penalty whose coefficient β_t varies per sample.

    PPO's clipping *is* such a penalty: ``β_t = -w·Â`` on the samples that it kills, 0 elsewhere. Here the
    shape of β_t is an argument. The default, ``"hard"``, is SB3's PPO to the last bit.

    Paper: Colletti & Holzinger 2026, https://arxiv.org/abs/2606.23932

    All arguments but the last two are those of :class:`stable_baselines3.PPO`, with the same defaults. "A schedule"
    below is a function of the progress remaining, which goes from 1 at the beginning to 0 at the end.

    :param policy: the policy model to use (``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, a class)
    :param env: the environment to learn from, or its id
    :param learning_rate: learning rate of the optimizer, or a schedule
    :param n_steps: steps of each environment per rollout; a rollout has ``n_steps * n_envs`` samples
    :param batch_size: samples per minibatch
    :param n_epochs: passes over the rollout per update
    :param gamma: discount factor
    :param gae_lambda: λ of generalized advantage estimation, between bias (0) and variance (1)
    :param clip_range: half-width ε of the band of ratios that count as near, in ratio units, or a schedule
    :param clip_range_vf: how far a value may move from the old one in an update, in units of the reward, or a
        schedule; ``None`` for any distance
    :param normalize_advantage: whether each minibatch's advantages are brought to mean 0 and standard deviation 1
    :param ent_coef: coefficient of the entropy bonus
    :param vf_coef: coefficient of the value loss
    :param max_grad_norm: the gradient is scaled down to this norm
    :param use_sde: whether to explore with generalized state-dependent noise (gSDE) instead of independent noise
    :param sde_sample_freq: with gSDE, draw a new noise matrix every so many steps; -1 for once per rollout
    :param rollout_buffer_class: class of the rollout buffer, chosen by the observation space if not given
    :param rollout_buffer_kwargs: arguments of the rollout buffer
    :param target_kl: stop the epochs of an update once the approximate KL divergence is 1.5 times this, in nats
    :param stats_window_size: how many episodes the logged mean return and length are taken over
    :param tensorboard_log: folder of the TensorBoard log, ``None`` for none
    :param policy_kwargs: arguments of the policy
    :param verbose: 0 for silence, 1 for the log, 2 for debugging
    :param seed: seed of all random number generators, ``None`` for any
    :param device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for the GPU if there is one
    :param _init_setup_model: whether to build the networks now
    :param penalty: shape of β_t: a name (see :func:`sb3_klip.penalties.available_penalties`), a spec such as
        ``{"name": "sigmoid", "softness": 0.05}``, or a :class:`~sb3_klip.penalties.Penalty`
    :param penalty_kwargs: parameters of the shape, where ``penalty`` does not hold them
    :raises ValueError: for an unknown penalty, or a parameter that is not the shape's or out of its range
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
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
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
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
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        with plain_functions(self.policy):
            return super().collect_rollouts(*args, **kwargs)

    def train(self) -> None:
        # The analytic KL needs the distribution objects, which the plain functions do without
        with nullcontext() if self.penalty.uses_kl else plain_functions(self.policy):
            super().train()

    def learn(
        self: SelfKLipPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "KLipPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfKLipPPO:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

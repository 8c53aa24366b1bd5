"""Collects what an update has to say, and hands it to SB3's logger once."""

from collections.abc import Sequence

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_klip.algorithms.loss import LossTerms, UpdateSettings
from sb3_klip.diagnostics import beta_diagnostics


class UpdateLog:
    """
    The minibatches of one update. They stay tensors until the end, so that no minibatch waits for the device.
    """

    def __init__(self) -> None:
        self.terms: list[LossTerms] = []
        self.epoch_start = 0

    def start_epoch(self) -> None:
        """The KL estimate is averaged over the last epoch only, as SB3 does."""
        self.epoch_start = len(self.terms)

    def add(self, terms: LossTerms) -> None:
        """
        :param terms: what is to be logged of one more minibatch
        """
        self.terms.append(terms)

    def record(self, logger: Logger, settings: UpdateSettings) -> None:
        """
        Record SB3's ``train/*`` keys, equal to SB3's own to the last bit for the hard gate, and ``klip/*``.

        :param logger: the algorithm's logger
        :param settings: what stayed the same during the update
        """
        last = self.terms[-1]
        loss = last.policy_loss + settings.ent_coef * last.entropy_loss + settings.vf_coef * last.value_loss
        approx_kl = to_numpy([terms.approx_kl for terms in self.terms[self.epoch_start :]])

        # SB3 averages Python floats, except for the KL estimate, where it averages in float32.
        logger.record("train/entropy_loss", _mean([terms.entropy_loss for terms in self.terms]))
        logger.record("train/policy_gradient_loss", _mean([terms.policy_loss for terms in self.terms]))
        logger.record("train/value_loss", _mean([terms.value_loss for terms in self.terms]))
        logger.record("train/approx_kl", np.mean(approx_kl))
        logger.record("train/clip_fraction", _mean([terms.clip_fraction for terms in self.terms]))
        logger.record("train/loss", loss.item())
        logger.record("train/clip_range", settings.clip_range)
        if settings.clip_range_vf is not None:
            logger.record("train/clip_range_vf", settings.clip_range_vf)

        diagnostics = beta_diagnostics(
            th.cat([terms.ratio for terms in self.terms]),
            th.cat([terms.advantages for terms in self.terms]),
            th.cat([terms.effective_advantage for terms in self.terms]),
            settings.clip_range,
        )
        for key, value in diagnostics.items():
            logger.record(f"klip/{key}", value)


def to_numpy(scalars: Sequence[th.Tensor]) -> np.ndarray:
    """
    :param scalars: tensors without dimensions
    :return: the same in one array, brought from the device together
    """
    return th.stack(list(scalars)).cpu().numpy()


def _mean(scalars: Sequence[th.Tensor]) -> np.floating:
    return np.mean(to_numpy(scalars).astype(np.float64))

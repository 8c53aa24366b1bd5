"""Looks at what a penalty returns before it may touch a parameter of the policy."""

import torch as th

from sb3_klip.penalties.base import Penalty, PenaltyInputs


def check_penalty(penalty: Penalty) -> None:
    """
    Call a penalty on a small grid of ratios and advantages, at the beginning and at the end of training.

    :param penalty: the penalty
    :raises ValueError: if it does not return one number, and not NaN, per sample
    """
    ratios, advantages_of_all_signs = th.tensor([0.1, 0.7, 0.95, 1.0, 1.05, 1.5, 10.0]), th.tensor([-2.0, 0.0, 1.0])
    ratio, advantages = th.cartesian_prod(ratios, advantages_of_all_signs).unbind(dim=1)
    for progress_remaining in (1.0, 0.0):
        inputs = PenaltyInputs(ratio, advantages, 0.2, th.arange(len(ratio)).float(), progress_remaining)
        check_output(penalty, "effective_advantage", penalty.effective_advantage(inputs), ratio)
        check_output(penalty, "surrogate", penalty.surrogate(inputs), ratio)


def check_output(penalty: Penalty, method: str, output: object, ratio: th.Tensor) -> None:
    """
    :param penalty: the penalty that was called
    :param method: which of its methods
    :param output: what it returned
    :param ratio: the ratios it was called with, shape ``(B,)``
    :raises ValueError: if the output is not a tensor of shape ``(B,)`` without NaN
    """
    if not isinstance(output, th.Tensor):
        raise ValueError(f"{penalty!r}: {method} must return a tensor of shape ({len(ratio)},), got {output!r}")
    if output.shape != ratio.shape:
        raise ValueError(
            f"{penalty!r}: {method} has shape {tuple(output.shape)} for a minibatch of {len(ratio)} samples; "
            f"the gate must return one number per sample, shape {tuple(ratio.shape)}"
        )
    if th.isnan(output).any():
        where = int(th.isnan(output).nonzero()[0])
        raise ValueError(f"{penalty!r}: {method} is NaN, for example at ratio {ratio[where].item():g}; check its gate")

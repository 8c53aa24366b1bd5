"""Looks at what a penalty returns before it may touch a parameter of the policy."""

import torch as th

from sb3_klip.penalties.base import GatePenalty, Penalty, PenaltyInputs


def check_penalty(penalty: Penalty) -> None:
    """
    Call a penalty on a small grid of ratios and advantages, at the beginning and at the end of training.

    :param penalty: the penalty
    :raises ValueError: if it does not return one number, and not NaN, per sample
    """
    ratios, advantages_of_all_signs = th.tensor([0.1, 0.7, 0.95, 1.0, 1.05, 1.5, 10.0]), th.tensor([-2.0, 0.0, 1.0])
    ratio, advantages = th.cartesian_prod(ratios, advantages_of_all_signs).unbind(dim=1)
    for progress_remaining in (1.0, 0.0):
        check_outputs(penalty, PenaltyInputs(ratio, advantages, 0.2, th.arange(len(ratio)).float(), progress_remaining))


def check_outputs(penalty: Penalty, inputs: PenaltyInputs) -> None:
    """
    Call everything of a penalty that an update uses.

    :param penalty: the penalty
    :param inputs: one minibatch
    :raises ValueError: if it does not return one number, and not NaN, per sample
    """
    # What the author wrote comes first: the rest is made of it, where a wrong result might fail or be broadcast
    methods = ["beta", "effective_advantage", "gate", "kl_coef", "surrogate"]
    if isinstance(penalty, GatePenalty):
        methods = ["gate", "weight_space", *methods]
    for method in methods:
        output = getattr(penalty, method)(inputs)
        if not isinstance(output, th.Tensor) or output.shape != inputs.ratio.shape or not output.is_floating_point():
            raise ValueError(
                f"{penalty!r}: {method} must return a tensor of one floating-point number per sample, "
                f"here of shape {tuple(inputs.ratio.shape)}, got {_describe(output)}"
            )
        # NaN in the rewards or the observations is not the penalty's fault
        at_fault = th.isnan(output) & th.isfinite(inputs.ratio) & th.isfinite(inputs.advantages)
        if at_fault.any():
            sample = int(at_fault.nonzero()[0])
            raise ValueError(
                f"{penalty!r}: {method} must not return NaN, as it does at ratio {inputs.ratio[sample].item():g} "
                f"and advantage {inputs.advantages[sample].item():g}"
            )


def _describe(output: object) -> str:
    if isinstance(output, th.Tensor):
        return f"shape {tuple(output.shape)} of {output.dtype}"
    return type(output).__name__

"""What is worth knowing about β_t after an update, as plain numbers for SB3's logger."""

import numpy as np
import torch as th

from sb3_klip.surrogates import partition

#: Percentiles of β_t that are logged, as ``beta_p01`` and so on.
BETA_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


def beta_diagnostics(
    ratio: th.Tensor, advantages: th.Tensor, effective_advantage: th.Tensor, clip_range: float
) -> dict[str, float]:
    """
    The shares of the three sets of samples, and how β_t and its gate are distributed.

    Everything follows from the effective advantage, so it is the same for every shape:
    ``β = w·(Â_eff - Â)`` and ``g = 1 - Â_eff/Â`` (0 where ``Â = 0``). The sets are the paper's
    (Colletti & Holzinger 2026, arXiv:2606.23932), by the algorithm's ``clip_range`` whatever the shape.

    :param ratio: importance ratios of all samples of an update, shape ``(N,)``
    :param advantages: advantages as the update used them, shape ``(N,)``
    :param effective_advantage: what stood in their place in the policy gradient, shape ``(N,)``
    :param clip_range: half-width ε of the band, in ratio units
    :return: ``frac_in_band``, ``frac_kill``, ``frac_pass``, ``gate_mean``, ``beta_abs_mean`` and
        ``beta_p01`` to ``beta_p99``
    """
    sets = partition(ratio, advantages, clip_range)
    beta = ratio * (effective_advantage - advantages)
    gate = th.where(advantages == 0, 0.0, 1 - effective_advantage / advantages)
    percentiles = np.percentile(beta.double().cpu().numpy(), BETA_PERCENTILES)
    return {
        "frac_in_band": sets.in_band.float().mean().item(),
        "frac_kill": sets.kill.float().mean().item(),
        "frac_pass": sets.pass_through.float().mean().item(),
        "gate_mean": gate.mean().item(),
        "beta_abs_mean": beta.abs().mean().item(),
        **{f"beta_p{percent:02d}": float(value) for percent, value in zip(BETA_PERCENTILES, percentiles, strict=True)},
    }

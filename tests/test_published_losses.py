"""
Every shape against the paper it comes from: each surrogate is written here anew, as its authors write it
(an objective to be maximised, of log-probabilities, with their clipping and stop-gradients), and its gradient
by autograd must be the one that the shape's effective advantage gives.

Nothing here knows of gates, except where a gate is how the paper itself defines the surrogate.
"""

import pytest
import torch as th
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from sb3_klip.penalties import GatePenalty, PenaltyInputs, available_penalties, make_penalty

BATCH = 4096


def ppo_unclipped(log_prob, old_log_prob, advantages, clip_range):
    """L_CPI = r·A. Schulman et al. 2017, arXiv:1707.06347, eq. (6)."""
    return th.exp(log_prob - old_log_prob) * advantages


def ppo_clip(log_prob, old_log_prob, advantages, clip_range):
    """L_CLIP = min(r·A, clip(r, 1-ε, 1+ε)·A). Schulman et al. 2017, arXiv:1707.06347, eq. (7)."""
    ratio = th.exp(log_prob - old_log_prob)
    return th.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


def klip(log_prob, old_log_prob, advantages, clip_range):
    """r·A + sg(β)·log π, β = -r·A on the kill set, else 0. KLip-PPO, arXiv:2606.23932, eq. (4) and (5)."""
    ratio = th.exp(log_prob - old_log_prob)
    too_likely = (advantages > 0) & (ratio > 1 + clip_range)
    too_unlikely = (advantages < 0) & (ratio < 1 - clip_range)
    beta = -(ratio * advantages) * (too_likely | too_unlikely)
    return ratio * advantages + beta.detach() * log_prob


def beyond_the_edge(ratio, advantages, clip_range):
    """How far the ratio is past the edge where PPO-Clip's gradient stops: the argument of KLip-PPO's soft gates."""
    return th.where(advantages > 0, ratio - 1 - clip_range, 1 - clip_range - ratio)


def klip_linear_ramp(log_prob, old_log_prob, advantages, clip_range, softness):
    """
    r·A + sg(β)·log π, β = -r·A·g with g rising linearly from 0 at the edge to 1 at a distance δ beyond it.
    KLip-PPO, arXiv:2606.23932, section 6 and the authors' code.
    """
    ratio = th.exp(log_prob - old_log_prob)
    past = beyond_the_edge(ratio, advantages, clip_range)
    gate = th.where(past > softness, 1.0, th.where(past > 0, past / softness, 0.0))
    return ratio * advantages - (ratio * advantages * gate).detach() * log_prob


def klip_sigmoid(log_prob, old_log_prob, advantages, clip_range, softness):
    """r·A + sg(β)·log π, β = -r·A·σ(d/τ), d the signed distance past the edge. KLip-PPO, arXiv:2606.23932, authors' code."""
    ratio = th.exp(log_prob - old_log_prob)
    gate = logsigmoid(beyond_the_edge(ratio, advantages, clip_range) / softness).exp()
    return ratio * advantages - (ratio * advantages * gate).detach() * log_prob


def klip_soft_min(log_prob, old_log_prob, advantages, clip_range, softness):
    """
    |A|·softmin_τ(r·s, clip(r)·s), s = sign A, with softmin_τ(x, y) = -τ·log(exp(-x/τ) + exp(-y/τ)).
    KLip-PPO, arXiv:2606.23932, authors' code ("normalized log-sum-exp soft minimum").
    """
    ratio = th.exp(log_prob - old_log_prob)
    unclipped = ratio * advantages.sign()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range) * advantages.sign()
    return -advantages.abs() * softness * th.logaddexp(-unclipped / softness, -clipped / softness)


def ppos(log_prob, old_log_prob, advantages, clip_range, alpha):
    """
    min(r·A, F(r)·A), F(r) = -α·tanh(r-1) ± α·tanh ε + 1 ± ε above (+) and below (-) the band, r within.
    PPOS, Zhu & Rosendo 2021, arXiv:2012.02439.
    """
    ratio = th.exp(log_prob - old_log_prob)
    bend = -alpha * th.tanh(ratio - 1)
    edge = clip_range + alpha * th.tanh(th.tensor(clip_range, dtype=ratio.dtype))
    outside = th.where(ratio > 1, 1 + edge + bend, 1 - edge + bend)
    functional_clip = th.where((ratio - 1).abs() <= clip_range, ratio, outside)
    return th.minimum(ratio * advantages, functional_clip * advantages)


def sloped_clip(ratio, clip_range, slope):
    """The identity in the band, continued at both edges by a line of this slope."""
    above = slope * ratio + (1 - slope) * (1 + clip_range)
    below = slope * ratio + (1 - slope) * (1 - clip_range)
    return th.where(ratio > 1 + clip_range, above, th.where(ratio < 1 - clip_range, below, ratio))


def ppo_rollback(log_prob, old_log_prob, advantages, clip_range, alpha):
    """
    min(r·A, F(r)·A), F(r) = -α·r + (1+α)·(1±ε) outside the band, r within.
    PPO-RB of Truly PPO, Wang et al. 2019, arXiv:1903.07940; "slope_rollback" in the authors' code is -α.
    """
    ratio = th.exp(log_prob - old_log_prob)
    return th.minimum(ratio * advantages, sloped_clip(ratio, clip_range, slope=-alpha) * advantages)


def leaky_clip(log_prob, old_log_prob, advantages, clip_range, alpha):
    """min(r·A, F(r)·A), F(r) = α·r + (1-α)·(1±ε) outside the band, r within: a clip as leaky as a leaky ReLU."""
    ratio = th.exp(log_prob - old_log_prob)
    return th.minimum(ratio * advantages, sloped_clip(ratio, clip_range, slope=alpha) * advantages)


def simple_policy_optimization(log_prob, old_log_prob, advantages, clip_range):
    """r·A - |A|/(2ε)·(r-1)². SPO, Xie et al. 2024, arXiv:2401.16025, and the authors' code."""
    ratio = th.exp(log_prob - old_log_prob)
    return ratio * advantages - advantages.abs() / (2 * clip_range) * (ratio - 1) ** 2


def dual_clip_ppo(log_prob, old_log_prob, advantages, clip_range, dual_clip):
    """max(min(r·A, clip(r)·A), c·A) where A < 0, PPO-Clip elsewhere. Ye et al. 2020, arXiv:1912.09729, eq. (5)."""
    clipped = ppo_clip(log_prob, old_log_prob, advantages, clip_range)
    return th.where(advantages < 0, th.maximum(clipped, dual_clip * advantages), clipped)


def dapo(log_prob, old_log_prob, advantages, clip_range, clip_range_low, clip_range_high):
    """min(r·A, clip(r, 1-ε_low, 1+ε_high)·A). DAPO's Clip-Higher, Yu et al. 2025, arXiv:2503.14476, section 3.1."""
    ratio = th.exp(log_prob - old_log_prob)
    return th.minimum(ratio * advantages, ratio.clamp(1 - clip_range_low, 1 + clip_range_high) * advantages)


def cispo(log_prob, old_log_prob, advantages, clip_range, clip_range_low, clip_range_high):
    """sg(clip(r, 1-ε_low, 1+ε_high))·A·log π. MiniMax-M1, Chen et al. 2025, arXiv:2506.13585, section 3.1."""
    weight = th.exp(log_prob - old_log_prob).clamp(1 - clip_range_low, 1 + clip_range_high)
    return weight.detach() * advantages * log_prob


def sapo(log_prob, old_log_prob, advantages, clip_range, tau_pos, tau_neg):
    """f(r)·A, f(r) = 4/τ·σ(τ·(r-1)), τ = τ_pos where A > 0, else τ_neg. Gao et al. 2025, arXiv:2511.20347, section 3."""
    ratio = th.exp(log_prob - old_log_prob)
    gain = 4 / tau_pos * th.sigmoid(tau_pos * (ratio - 1))
    loss = 4 / tau_neg * th.sigmoid(tau_neg * (ratio - 1))
    return th.where(advantages > 0, gain, loss) * advantages


def scopic(log_prob, old_log_prob, advantages, clip_range, tau):
    """4/τ·σ(τ·r - τ)·A. P3O's soft clipping (without its KL term), Chen et al. 2023, arXiv:2205.10047, authors' code."""
    ratio = th.exp(log_prob - old_log_prob)
    return advantages * (4 / tau) * th.sigmoid(ratio * tau - tau)


def gppo(log_prob, old_log_prob, advantages, clip_range):
    """
    min(r·A, clip(r, (1-ε)/sg(r)·r, (1+ε)/sg(r)·r)·A): as PPO-Clip in value, but the bounds keep a gradient.
    Su et al. 2025, arXiv:2508.07629, section on GPPO, and the authors' code (without its additional dual clip).
    """
    ratio = th.exp(log_prob - old_log_prob)
    unit = ratio / ratio.detach()
    clipped = th.clamp(ratio, (1 - clip_range) * unit, (1 + clip_range) * unit)
    return th.minimum(ratio * advantages, clipped * advantages)


def pspo(log_prob, old_log_prob, advantages, clip_range, alpha):
    """π̃/π_old·A with the smoothed policy π̃ = (1-α)·π + α·π_old. Dwyer et al. 2025, arXiv:2509.21282, and the authors' code."""
    smoothed = (1 - alpha) * log_prob.exp() + alpha * old_log_prob.exp()
    return smoothed / old_log_prob.exp() * advantages


#: Name, parameters, the published objective, and its own parameters where they are not the same.
PUBLISHED = [
    ("none", {}, ppo_unclipped),
    ("hard", {}, ppo_clip),
    ("hard", {}, klip),
    *[("linear_ramp", {"softness": softness}, klip_linear_ramp) for softness in (0.01, 0.05, 0.3, 2.0)],
    *[("sigmoid", {"softness": softness}, klip_sigmoid) for softness in (0.01, 0.05, 0.3, 2.0)],
    *[("soft_min", {"softness": softness}, klip_soft_min) for softness in (0.01, 0.05, 0.3, 2.0)],
    *[("tanh", {"alpha": alpha}, ppos) for alpha in (0.05, 0.3, 1.0)],
    *[("leaky", {"alpha": alpha}, leaky_clip) for alpha in (0.01, 0.1, 0.7)],
    *[("rollback", {"alpha": alpha}, ppo_rollback) for alpha in (0.02, 0.3, 1.0)],
    ("spo", {}, simple_policy_optimization),
    *[("dual_clip", {"dual_clip": dual_clip}, dual_clip_ppo) for dual_clip in (1.1, 3.0, 10.0)],
    *[("clip_higher", {"clip_range_low": low, "clip_range_high": high}, dapo) for low, high in [(0.2, 0.28), (0.4, 0.1)]],
    # 1 is no lower bound, as in the paper's experiments
    *[
        ("cispo", {"clip_range_low": low, "clip_range_high": high}, cispo)
        for low, high in [(0.2, 0.28), (0.5, 0.1), (1.0, 0.28), (1.0, 4.0)]
    ],
    *[("sapo", {"tau_pos": pos, "tau_neg": neg}, sapo) for pos, neg in [(1.0, 1.05), (4.0, 0.5), (0.3, 10.0)]],
    ("gppo", {}, gppo),
    *[("pspo", {"alpha": alpha}, pspo) for alpha in (0.1, 0.5, 0.9)],
]
IDS = ["-".join([name, objective.__name__, *map(str, parameters.values())]) for name, parameters, objective in PUBLISHED]

#: Surrogates whose stop-gradients make their value meaningless.
WITHOUT_VALUE = {klip, klip_linear_ramp, klip_sigmoid, cispo, gppo}


def minibatch(widest, seed=0):
    """Log-probabilities and advantages: half of the ratios in and around the band, half log-uniform within exp(±widest)."""
    generator = th.Generator().manual_seed(seed)
    uniform = th.rand(3, BATCH, generator=generator, dtype=th.float64) * 2 - 1
    log_ratio = uniform[0] * th.where(th.arange(BATCH) % 2 == 0, 0.5, widest)
    old_log_prob = -1.5 + 1.5 * uniform[1]
    # Of both signs, over four orders of magnitude
    advantages = uniform[2].sign() * 10 ** (4 * uniform[2].abs() - 2)
    return old_log_prob + log_ratio, old_log_prob, advantages


def published_gradient(objective, log_prob, old_log_prob, advantages, clip_range, **parameters):
    """The derivative of each sample's objective with respect to its log-probability."""
    log_prob = log_prob.clone().requires_grad_()
    objective(log_prob, old_log_prob, advantages, clip_range, **parameters).sum().backward()
    return log_prob.grad


def family_gradient(penalty, log_prob, old_log_prob, advantages, clip_range):
    """The same derivative as the update takes it: of the ratio times the detached effective advantage."""
    log_prob = log_prob.clone().requires_grad_()
    ratio = th.exp(log_prob - old_log_prob)
    effective = penalty.effective_advantage(PenaltyInputs(ratio.detach(), advantages, clip_range))
    (effective.detach() * ratio).sum().backward()
    return log_prob.grad


@pytest.mark.parametrize("clip_range", [0.05, 0.2, 0.3])
@pytest.mark.parametrize("widest", [1.0, 8.0])
@pytest.mark.parametrize(("name", "parameters", "objective"), PUBLISHED, ids=IDS)
def test_gradient_is_the_published_one(name, parameters, objective, widest, clip_range):
    log_prob, old_log_prob, advantages = minibatch(widest)
    published = published_gradient(objective, log_prob, old_log_prob, advantages, clip_range, **parameters)
    ours = family_gradient(make_penalty(name, **parameters), log_prob, old_log_prob, advantages, clip_range)
    # In units of the plain gradient w·A: what the shape leaves of it
    plain = th.exp(log_prob - old_log_prob) * advantages
    assert_close(ours / plain, published / plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters", "objective"),
    [case for case in PUBLISHED if case[2] not in WITHOUT_VALUE],
    ids=[name for name, case in zip(IDS, PUBLISHED, strict=True) if case[2] not in WITHOUT_VALUE],
)
def test_weight_space_value_is_the_published_objective(name, parameters, objective):
    """``w·A - Φ`` is the published objective, but for the constant that makes it A at w = 1."""
    log_prob, old_log_prob, advantages = minibatch(widest=2.0)
    inputs = PenaltyInputs(th.exp(log_prob - old_log_prob), advantages, clip_range=0.2)
    ours = inputs.ratio * advantages - make_penalty(name, **parameters).weight_space(inputs)
    here, on_policy = (objective(new, old_log_prob, advantages, 0.2, **parameters) for new in (log_prob, old_log_prob))
    assert_close(ours / advantages, (here - on_policy + advantages) / advantages, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tau", [2.0, 4.0])
def test_sapo_with_one_temperature_is_the_scopic_objective(tau):
    """P3O's temperatures: 4 for MuJoCo, 2 for Atari."""
    log_prob, old_log_prob, advantages = minibatch(widest=3.0)
    published = published_gradient(scopic, log_prob, old_log_prob, advantages, 0.2, tau=tau)
    ours = family_gradient(make_penalty("sapo", tau_pos=tau, tau_neg=tau), log_prob, old_log_prob, advantages, 0.2)
    plain = th.exp(log_prob - old_log_prob) * advantages
    assert_close(ours / plain, published / plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "parameters", "objective"), PUBLISHED, ids=IDS)
def test_no_advantage_no_gradient(name, parameters, objective):
    log_prob, old_log_prob, _ = minibatch(widest=8.0)
    zero = th.zeros_like(log_prob)
    assert (published_gradient(objective, log_prob, old_log_prob, zero, 0.2, **parameters) == 0).all()
    assert (family_gradient(make_penalty(name, **parameters), log_prob, old_log_prob, zero, 0.2) == 0).all()


def test_every_gate_has_its_published_loss_here():
    shipped = [make_penalty(name) for name in available_penalties()]
    gates = {gate.name for gate in shipped if isinstance(gate, GatePenalty) and type(gate).__module__.startswith("sb3_klip.")}
    assert gates == {name for name, _, _ in PUBLISHED}

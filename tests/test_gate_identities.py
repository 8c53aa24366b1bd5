"""What holds for every gate whatever its shape, and how the shapes turn into one another at their limits."""

import pytest
import torch as th
from torch.testing import assert_close

from sb3_klip.penalties import GatePenalty, PenaltyInputs, available_penalties, make_penalty

CLIP_RANGE = 0.2

#: Every gate of the package with its defaults, and some with other parameters besides.
GATES = [
    *[
        {"name": name}
        for name, penalty in [(name, make_penalty(name)) for name in available_penalties()]
        if isinstance(penalty, GatePenalty) and type(penalty).__module__.startswith("sb3_klip.")
    ],
    {"name": "linear_ramp", "softness": 0.3},
    {"name": "sigmoid", "softness": 0.3},
    {"name": "soft_min", "softness": 0.3},
    {"name": "tanh", "alpha": 1.0},
    {"name": "leaky", "alpha": 0.5},
    {"name": "rollback", "alpha": 1.0},
    {"name": "dual_clip", "dual_clip": 1.5},
    {"name": "clip_higher", "clip_range_low": 0.1, "clip_range_high": 0.4},
    {"name": "cispo", "clip_range_low": 1.0, "clip_range_high": 0.28},
    {"name": "sapo", "tau_pos": 0.5, "tau_neg": 8.0},
    {"name": "pspo", "alpha": 0.5},
    {"name": "hard", "clip_range": 0.1},
    {"name": "spo", "clip_range": 0.4},
]


def each_gate(test):
    return pytest.mark.parametrize("spec", GATES, ids=lambda spec: "-".join(map(str, spec.values())))(test)


def samples(count=4096, low=0.02, high=4.0, dtype=th.float64, seed=0):
    """Random ratios on a continuous range, and advantages of both signs."""
    generator = th.Generator().manual_seed(seed)
    ratio = low + (high - low) * th.rand(count, generator=generator, dtype=th.float64)
    advantages = th.randn(count, generator=generator, dtype=th.float64)
    return PenaltyInputs(ratio.to(dtype), advantages.to(dtype), CLIP_RANGE)


def off_the_edges(inputs, gap=1e-3):
    """The samples that are not within this gap of an edge of the band."""
    away = ((inputs.ratio - 1).abs() - inputs.clip_range).abs() > gap
    return PenaltyInputs(inputs.ratio[away], inputs.advantages[away], inputs.clip_range)


def killed(inputs):
    """Where PPO-Clip has no gradient."""
    upper = (inputs.advantages > 0) & (inputs.ratio > 1 + inputs.clip_range)
    lower = (inputs.advantages < 0) & (inputs.ratio < 1 - inputs.clip_range)
    return upper | lower


def effective(spec, inputs):
    return make_penalty(spec).effective_advantage(inputs)


@each_gate
def test_gate_coefficient_and_effective_advantage_say_the_same(spec):
    inputs, penalty = samples(), make_penalty(spec)
    gate, beta, effective_advantage = penalty.gate(inputs), penalty.beta(inputs), penalty.effective_advantage(inputs)
    assert_close(beta, -inputs.ratio * inputs.advantages * gate, rtol=1e-12, atol=1e-12)
    assert_close(effective_advantage, inputs.advantages * (1 - gate), rtol=1e-12, atol=1e-12)
    assert_close(effective_advantage, inputs.advantages + beta / inputs.ratio, rtol=1e-12, atol=1e-12)


@each_gate
def test_weight_space_form_has_the_gates_gradient(spec):
    """d/dw (w·A - Φ) = A·(1 - g)"""
    inputs, penalty = samples(), make_penalty(spec)
    ratio = inputs.ratio.clone().requires_grad_()
    objective = ratio * inputs.advantages - penalty.weight_space(PenaltyInputs(ratio, inputs.advantages, CLIP_RANGE))
    objective.sum().backward()
    assert_close(ratio.grad / inputs.advantages, 1 - penalty.gate(inputs), rtol=1e-9, atol=1e-11)


@each_gate
def test_weight_space_form_is_the_integral_of_the_gate(spec):
    """Φ = A·∫₁ʷ g dx, by the midpoint rule: no jump hides at an edge, where the gradient cannot tell."""
    inputs, penalty, points = samples(count=40), make_penalty(spec), 20_000
    fractions = (th.arange(points, dtype=th.float64) + 0.5) / points
    for w, a, phi in zip(inputs.ratio, inputs.advantages, penalty.weight_space(inputs), strict=True):
        path = PenaltyInputs(1 + fractions * (w - 1), a.expand(points), CLIP_RANGE)
        # A jump of the gate costs the rule at most half a step for each unit of its height
        assert_close(phi, a * (w - 1) * penalty.gate(path).mean(), rtol=1e-4, atol=2e-4)


@each_gate
def test_on_policy_the_dual_is_zero(spec):
    advantages = th.tensor([2.0, -0.5, 0.0], dtype=th.float64)
    dual = make_penalty(spec).weight_space(PenaltyInputs(th.ones_like(advantages), advantages, CLIP_RANGE))
    assert_close(dual, th.zeros_like(dual), rtol=0, atol=1e-12)


@each_gate
def test_own_clip_range_stands_for_the_algorithms(spec):
    ours, theirs = samples(), samples()
    theirs = PenaltyInputs(theirs.ratio, theirs.advantages, clip_range=0.35)
    assert_close(
        effective({**spec, "clip_range": 0.35}, ours), effective({**spec, "clip_range": None}, theirs), rtol=0, atol=0
    )


@each_gate
@pytest.mark.parametrize("dtype", [th.float32, th.float64, th.bfloat16])
def test_keeps_dtype_and_shape(spec, dtype):
    inputs, penalty = samples(count=7, dtype=dtype), make_penalty(spec)
    for output in (penalty.gate, penalty.effective_advantage, penalty.beta, penalty.weight_space):
        assert output(inputs).dtype == dtype
        assert output(inputs).shape == (7,)


@each_gate
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_zero_advantage_is_exactly_zero_gradient(spec, dtype):
    ratio = th.linspace(-80, 80, 641, dtype=dtype).exp()
    inputs = PenaltyInputs(ratio, th.zeros_like(ratio), CLIP_RANGE)
    assert (ratio * effective(spec, inputs) == 0).all()
    assert (make_penalty(spec).beta(inputs) == 0).all()


@each_gate
@pytest.mark.parametrize("advantage", [1.0, -1.0, 10.0, -10.0, 1e-3, -1e-3])
def test_finite_far_from_the_old_policy(spec, advantage):
    """In float32, over 160 nats: all that float32 can hold is finite, and nothing is NaN."""
    log_ratio = th.arange(-80, 80.25, 0.25, dtype=th.float64)
    exact_inputs = PenaltyInputs(log_ratio.exp(), th.full_like(log_ratio, advantage), CLIP_RANGE)
    exact = exact_inputs.ratio * effective(spec, exact_inputs)
    holdable = exact.abs() < th.finfo(th.float32).max / 2

    inputs = PenaltyInputs(exact_inputs.ratio.float(), exact_inputs.advantages.float(), CLIP_RANGE)
    gradient = inputs.ratio * effective(spec, inputs)
    assert make_penalty(spec).gate(inputs).isfinite().all()
    assert gradient[holdable].isfinite().all()
    assert not gradient.isnan().any()


@each_gate
def test_single_precision_is_enough(spec):
    """Within a factor of e³ of the old policy, float32 and float64 give one gradient to 5 digits of w·A."""
    log_ratio = th.linspace(-3, 3, 601).double()
    for advantage in (1.0, -1.0):
        exact_inputs = off_the_edges(PenaltyInputs(log_ratio.exp(), th.full_like(log_ratio, advantage), CLIP_RANGE))
        inputs = PenaltyInputs(exact_inputs.ratio.float(), exact_inputs.advantages.float(), CLIP_RANGE)
        assert_close(effective(spec, inputs).double(), effective(spec, exact_inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear_ramp", "sigmoid", "soft_min"])
def test_without_softness_a_soft_clip_is_hard(name):
    inputs = off_the_edges(samples())
    assert th.equal(effective({"name": name, "softness": 1e-6}, inputs), effective({"name": "hard"}, inputs))


def test_widest_ramp_lets_everything_through():
    inputs = samples()
    assert_close(effective({"name": "linear_ramp", "softness": 1e12}, inputs), inputs.advantages, rtol=1e-10, atol=0)


def test_widest_sigmoid_halves_every_gradient():
    """It is centred at the edge, so what it tends to is not "none"."""
    inputs = samples()
    assert_close(effective({"name": "sigmoid", "softness": 1e12}, inputs), inputs.advantages / 2, rtol=1e-10, atol=0)


def test_widest_soft_minimum_halves_the_gradients_outside_the_band():
    """It tends to the mean of the two branches, of which only one has a gradient there."""
    inputs = samples()
    outside = (inputs.ratio - 1).abs() > CLIP_RANGE
    expected = th.where(outside, inputs.advantages / 2, inputs.advantages)
    assert_close(effective({"name": "soft_min", "softness": 1e12}, inputs), expected, rtol=1e-10, atol=0)


def test_ramp_is_hard_beyond_its_end_and_open_before_the_edge():
    inputs = samples()
    past = th.where(inputs.advantages > 0, inputs.ratio - 1, 1 - inputs.ratio) - CLIP_RANGE
    result = effective({"name": "linear_ramp", "softness": 0.3}, inputs)
    assert (result[past >= 0.3] == 0).all()
    assert th.equal(result[past <= 0], inputs.advantages[past <= 0])


def test_sigmoid_takes_half_at_the_edge():
    edges = th.tensor([1.2, 0.8], dtype=th.float64)
    advantages = th.tensor([3.0, -3.0], dtype=th.float64)
    result = effective({"name": "sigmoid", "softness": 0.05}, PenaltyInputs(edges, advantages, CLIP_RANGE))
    assert_close(result, advantages / 2)


def test_soft_minimum_is_exact_inside_the_band():
    inputs = samples(low=0.801, high=1.199)
    assert th.equal(effective({"name": "soft_min", "softness": 0.5}, inputs), inputs.advantages)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "leaky", "alpha": 0.0},
        {"name": "rollback", "alpha": 0.0},
        {"name": "tanh", "alpha": 0.0},
        {"name": "dual_clip", "dual_clip": 1e30},
        {"name": "clip_higher", "clip_range_low": 0.2, "clip_range_high": 0.2},
        {"name": "clip_higher", "clip_range_high": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_hard_bit_for_bit(spec, dtype):
    inputs = samples(dtype=dtype)
    # The edges themselves too, and the numbers next to them
    edges = th.tensor([1 - CLIP_RANGE, 1 + CLIP_RANGE], dtype=dtype)
    nearby = th.cat([edges, edges.nextafter(edges * 2), edges.nextafter(edges * 0)])
    ratio = th.cat([inputs.ratio, nearby, nearby, nearby])
    advantages = th.cat([inputs.advantages, th.tensor([1.5, -1.5, 0.0], dtype=dtype).repeat_interleave(len(nearby))])
    inputs = PenaltyInputs(ratio, advantages, CLIP_RANGE)
    assert th.equal(make_penalty(spec).gate(inputs), make_penalty("hard").gate(inputs))
    assert th.equal(effective(spec, inputs), effective({"name": "hard"}, inputs))


@pytest.mark.parametrize(
    "spec",
    [{"name": "leaky", "alpha": 1.0}, {"name": "pspo", "alpha": 0.0}, {"name": "none"}],
    ids=str,
)
def test_untouched_bit_for_bit(spec):
    inputs = samples()
    assert th.equal(effective(spec, inputs), inputs.advantages)


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_sapo_leaves_the_plain_gradient_on_policy(dtype):
    advantages = samples(dtype=dtype).advantages
    result = effective({"name": "sapo"}, PenaltyInputs(th.ones_like(advantages), advantages, CLIP_RANGE))
    assert th.equal(result, advantages)


def test_coldest_sapo_lets_everything_through():
    inputs = samples()
    spec = {"name": "sapo", "tau_pos": 1e-6, "tau_neg": 1e-6}
    assert_close(effective(spec, inputs), inputs.advantages, rtol=1e-10, atol=0)


def test_ppos_is_hard_far_above_the_band():
    """tanh is flat there; below the band the ratio never goes far enough."""
    inputs = samples(low=30, high=1000)
    assert_close(effective({"name": "tanh", "alpha": 0.3}, inputs), effective({"name": "hard"}, inputs), rtol=0, atol=1e-12)


def test_rollback_is_a_leak_of_the_other_sign():
    inputs = samples()
    dead = killed(inputs)
    back, leak = (effective({"name": name, "alpha": 0.25}, inputs) for name in ("rollback", "leaky"))
    assert th.equal(back[dead], -leak[dead])
    assert th.equal(back[~dead], leak[~dead])


def test_spo_is_still_where_ppo_clip_stops():
    """SPO's maximum is at the edge: plain at w = 1, nothing left at w = 1 ± ε, twice the gradient at the other edge."""
    ratio = th.tensor([1.0, 1.2, 0.8, 0.8, 1.2], dtype=th.float64)
    advantages = th.tensor([2.0, 2.0, -2.0, 2.0, -2.0], dtype=th.float64)
    expected = th.tensor([2.0, 0.0, 0.0, 4.0, -4.0], dtype=th.float64)
    assert_close(effective({"name": "spo"}, PenaltyInputs(ratio, advantages, CLIP_RANGE)), expected)


def test_dual_clip_differs_only_where_a_bad_action_became_much_likelier():
    inputs = samples()
    stopped = (inputs.advantages < 0) & (inputs.ratio > 2)
    dual, hard = effective({"name": "dual_clip", "dual_clip": 2.0}, inputs), effective({"name": "hard"}, inputs)
    assert (dual[stopped] == 0).all()
    assert th.equal(dual[~stopped], hard[~stopped])


@pytest.mark.parametrize("name", ["cispo", "gppo"])
def test_preserved_gradients_are_as_large_as_at_the_edge(name):
    inputs = samples()
    gradient = inputs.ratio * effective({"name": name}, inputs)
    kept = killed(inputs)
    assert_close(gradient[kept], (inputs.ratio.clamp(0.8, 1.2) * inputs.advantages)[kept], rtol=1e-12, atol=0)


def test_gppo_and_cispo_differ_on_corrective_moves_only():
    inputs = samples()
    corrective = ((inputs.ratio - 1).abs() > CLIP_RANGE) & ~killed(inputs)
    gppo, cispo = (effective({"name": name}, inputs) for name in ("gppo", "cispo"))
    assert th.equal(gppo[corrective], inputs.advantages[corrective])
    assert_close(gppo[~corrective], cispo[~corrective], rtol=1e-12, atol=0)
    assert (gppo[corrective] != cispo[corrective]).all()


def test_cispo_without_bounds_is_the_plain_gradient():
    inputs = samples()
    assert th.equal(effective({"name": "cispo", "clip_range_low": 1.0, "clip_range_high": 1e6}, inputs), inputs.advantages)


def test_pspo_scales_every_gradient_alike():
    inputs = samples()
    assert_close(effective({"name": "pspo", "alpha": 0.1}, inputs), 0.9 * inputs.advantages)


def test_each_side_of_clip_higher_has_its_own_band():
    inputs = samples()
    result = effective({"name": "clip_higher", "clip_range_low": 0.1, "clip_range_high": 0.5}, inputs)
    dead = th.where(inputs.advantages > 0, inputs.ratio > 1.5, inputs.ratio < 0.9)
    assert th.equal(result, th.where(dead, 0.0, inputs.advantages))


def test_annealing_a_softness_to_zero_ends_at_hard():
    inputs = off_the_edges(samples())
    last = PenaltyInputs(inputs.ratio, inputs.advantages, CLIP_RANGE, progress_remaining=0.0)
    for name in ("linear_ramp", "sigmoid", "soft_min"):
        result = effective({"name": name, "softness": "lin_0.1"}, last)
        assert th.equal(result, effective({"name": "hard"}, last)), name


def test_gradient_of_a_minibatch_is_ppo_clips():
    """The whole chain for one linear policy: the family's hard loss and PPO-Clip's have one parameter gradient."""
    generator = th.Generator().manual_seed(1)
    weights = th.randn(5, generator=generator, dtype=th.float64, requires_grad=True)
    features = th.randn(256, 5, generator=generator, dtype=th.float64)
    advantages = th.randn(256, generator=generator, dtype=th.float64)
    ratio = th.exp(0.2 * features @ weights)
    clipped = th.minimum(ratio * advantages, ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE) * advantages)
    (expected,) = th.autograd.grad(clipped.mean(), weights, retain_graph=True)
    coefficient = effective({"name": "hard"}, PenaltyInputs(ratio.detach(), advantages, CLIP_RANGE))
    (ours,) = th.autograd.grad((coefficient * ratio).mean(), weights)
    assert_close(ours, expected, rtol=1e-12, atol=1e-14)

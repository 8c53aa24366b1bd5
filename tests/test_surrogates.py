"""The three forms of PPO's clipped surrogate are one objective, and the gate is exactly its gradient."""

import math

import numpy as np
import pytest
import torch as th
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sb3_klip.penalties import PenaltyInputs, make_penalty
from sb3_klip.surrogates import (
    clip_gate,
    clip_surrogate,
    harmful_distance,
    partition,
    per_sample_kl_surrogate,
    weight_space_surrogate,
)

FORMS = [clip_surrogate, weight_space_surrogate, per_sample_kl_surrogate]
DTYPES = [th.float32, th.float64]
#: Products of ratios and advantages below this neither overflow nor underflow, nor do their quotients.
SAFE_EXPONENT = {th.float32: 15, th.float64: 100}

# One sample per region, by hand, for a clip range of 0.2:
# ratio, advantage, set, objective, derivative of the objective with respect to the ratio
EXAMPLES = [
    (1.0, 2.0, "in_band", 2.0, 2.0),
    (1.1, -2.0, "in_band", -2.2, -2.0),
    (0.9, 0.5, "in_band", 0.45, 0.5),
    (1.5, 2.0, "kill", 2.4, 0.0),
    (0.5, -2.0, "kill", -1.6, 0.0),
    (1.5, -2.0, "pass_through", -3.0, -2.0),
    (0.5, 2.0, "pass_through", 1.0, 2.0),
    (1.5, 0.0, "in_band", 0.0, 0.0),
    (0.5, 0.0, "in_band", 0.0, 0.0),
    (1e6, 1.0, "kill", 1.2, 0.0),
    (1e-6, 1.0, "pass_through", 1e-6, 1.0),
]


def edges(clip_range, dtype):
    """The ends of the band as a tensor of this dtype holds them, as Python floats."""
    return [th.tensor(edge, dtype=dtype).item() for edge in (1 - clip_range, 1 + clip_range)]


def neighbours(value, dtype):
    """A number and the two floats next to it, in ascending order."""
    numpy_type = np.float32 if dtype == th.float32 else np.float64
    value = numpy_type(value)
    return [float(np.nextafter(value, numpy_type(-math.inf))), float(value), float(np.nextafter(value, numpy_type(math.inf)))]


@st.composite
def batches(draw, safe_products=False):
    """Ratios, advantages and a clip range; exact edges, their neighbours and zero advantages are frequent."""
    dtype = draw(st.sampled_from(DTYPES))
    width = 32 if dtype == th.float32 else 64
    clip_range = draw(st.sampled_from([0.0, 0.1, 0.2, 0.3]) | st.floats(1e-3, 0.999))
    boundary = [value for edge in edges(clip_range, dtype) for value in neighbours(edge, dtype) if value > 0]
    if safe_products:
        # Powers of ten with a few digits: hypothesis would otherwise draw most floats near 0 or 1
        exponent = SAFE_EXPONENT[dtype]
        large = st.builds(lambda digits, power: digits * 10.0**power, st.floats(1, 10), st.integers(-exponent, exponent - 1))
        ratios = large | st.floats(0.5, 2.0)
        advantages = large | large.map(lambda value: -value) | st.floats(-3, 3).filter(lambda value: abs(value) > 1e-3)
    else:
        ratios = st.floats(min_value=0, exclude_min=True, allow_infinity=False, width=width)
        advantages = st.floats(allow_nan=False, allow_infinity=False, width=width)
    samples = draw(
        st.lists(
            st.tuples(ratios | st.sampled_from(boundary) | st.just(1.0), advantages | st.sampled_from([0.0, -0.0, 1.0, -1.0])),
            min_size=1,
            max_size=30,
        )
    )
    ratio, advantages = th.tensor(samples, dtype=dtype).T.contiguous()
    # A float64 that is drawn for a float32 tensor may have rounded to 0
    assume((ratio > 0).all())
    return ratio, advantages, clip_range


def gradient_of(form, ratio, advantages, clip_range):
    """Derivatives of the sum of a form with respect to the log-probability and to the ratio."""
    # exp(log(w)) would miss the exact edges of the band
    log_prob = th.zeros_like(ratio).requires_grad_()
    moved = ratio * th.exp(log_prob)
    return th.autograd.grad(form(moved, advantages, clip_range).sum(), [log_prob, moved])


def ties(ratio, advantages, low, high):
    """Where a ratio outside the band has the same product with the advantage as the edge of the band."""
    edge = th.clamp(ratio, low, high)
    return (edge != ratio) & (advantages != 0) & (advantages * ratio == advantages * edge)


def autograd_of_min(ratio, advantages, low, high):
    """The derivative of ``min(w·Â, clip(w)·Â)`` with respect to the ratio, by automatic differentiation."""
    ratio = ratio.clone().requires_grad_()
    th.min(advantages * ratio, advantages * th.clamp(ratio, low, high)).sum().backward()
    return ratio.grad


def boundary_batch(clip_range, n_samples, seed):
    """Float32 ratios of which a third lie within three floats of an edge, and advantages with zeros."""
    rng = np.random.default_rng(seed)
    ratio = np.exp(rng.normal(0, 0.5, n_samples)).astype(np.float32)
    near = rng.choice(np.array([1 - clip_range, 1 + clip_range], dtype=np.float32), n_samples // 3)
    offsets = rng.integers(-3, 4, near.shape).astype(np.int32)
    ratio[: len(near)] = (near.view(np.int32) + offsets).view(np.float32)
    advantages = rng.normal(0, 1, n_samples).astype(np.float32)
    advantages[rng.random(n_samples) < 0.05] = 0
    return th.from_numpy(ratio), th.from_numpy(advantages)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(["ratio", "advantage", "expected_set", "objective", "slope"], EXAMPLES)
def test_examples_by_hand(ratio, advantage, expected_set, objective, slope, dtype):
    ratio, advantages = th.tensor([ratio], dtype=dtype), th.tensor([advantage], dtype=dtype)
    sets = partition(ratio, advantages, 0.2)
    assert {name for name, mask in sets._asdict().items() if mask.item()} == {expected_set}
    assert_close(clip_surrogate(ratio, advantages, 0.2).item(), objective)
    assert_close(weight_space_surrogate(ratio, advantages, 0.2).item(), objective)
    for form in FORMS:
        _, gradient = gradient_of(form, ratio, advantages, 0.2)
        assert_close(gradient.item(), slope)


def test_kl_surrogate_by_hand():
    ratio, advantages = th.tensor([1.5, 0.5, 1.1, 1.5], dtype=th.float64), th.tensor([2.0, -2.0, 1.0, -1.0], dtype=th.float64)
    # w·Â + β·log w with β = -w·Â on the two samples that are killed, 0 on the others
    expected = [3.0 - 3.0 * math.log(1.5), -1.0 + 1.0 * math.log(0.5), 1.1, -1.5]
    assert_close(per_sample_kl_surrogate(ratio, advantages, 0.2), th.tensor(expected, dtype=th.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip_range", [0.0, 0.1, 0.2, 0.3, 0.5])
def test_edges_belong_to_the_band_and_their_outer_neighbours_do_not(clip_range, dtype):
    low, high = edges(clip_range, dtype)
    ratio = th.tensor([neighbours(low, dtype)[0], low, high, neighbours(high, dtype)[2]], dtype=dtype)
    up, down = th.ones_like(ratio), -th.ones_like(ratio)
    assert partition(ratio, up, clip_range).in_band.tolist() == [False, True, True, False]
    assert partition(ratio, up, clip_range).kill.tolist() == [False, False, False, True]
    assert partition(ratio, down, clip_range).kill.tolist() == [True, False, False, False]
    assert partition(ratio, down, clip_range).pass_through.tolist() == [False, False, False, True]


@settings(max_examples=300)
@given(batch=batches())
def test_partition_is_a_partition(batch):
    ratio, advantages, clip_range = batch
    sets = partition(ratio, advantages, clip_range)
    assert all(mask.dtype == th.bool and mask.shape == ratio.shape for mask in sets)
    assert (th.stack(list(sets)).sum(dim=0) == 1).all()
    low, high = edges(clip_range, ratio.dtype)
    inside = (ratio >= low) & (ratio <= high)
    assert th.equal(sets.in_band, inside | (advantages == 0))
    # Killed is what moves on in the direction of the advantage, away from 1
    assert th.equal(sets.kill, ~sets.in_band & (th.sign(ratio - 1) == th.sign(advantages)))


@settings(max_examples=300)
@given(batch=batches())
def test_clip_and_weight_space_forms_are_equal_in_value(batch):
    ratio, advantages, clip_range = batch
    assert th.equal(clip_surrogate(ratio, advantages, clip_range), weight_space_surrogate(ratio, advantages, clip_range))


@settings(max_examples=300)
@given(batch=batches(safe_products=True))
def test_weight_space_form_is_the_ratio_less_its_penalty(batch):
    ratio, advantages, clip_range = (part.double() if isinstance(part, th.Tensor) else part for part in batch)
    kill = partition(ratio, advantages, clip_range).kill
    penalty = th.zeros_like(ratio)
    penalty[kill & (advantages > 0)] = ((ratio - (1 + clip_range)) * advantages)[kill & (advantages > 0)]
    penalty[kill & (advantages < 0)] = ((ratio - (1 - clip_range)) * advantages)[kill & (advantages < 0)]
    difference = weight_space_surrogate(ratio, advantages, clip_range) - (ratio * advantages - penalty)
    assert (penalty >= 0).all()
    # The right-hand side subtracts numbers of the size of the product
    assert (difference.abs() <= 4 * th.finfo(th.float64).eps * (ratio * advantages).abs().clamp(min=advantages.abs())).all()


@settings(max_examples=300)
@given(batch=batches(safe_products=True))
def test_all_three_forms_are_equal_in_gradient(batch):
    ratio, advantages, clip_range = batch
    by_log_prob, by_ratio = gradient_of(clip_surrogate, ratio, advantages, clip_range)
    untied = ~ties(ratio, advantages, 1 - clip_range, 1 + clip_range)
    rounding = 4 * th.finfo(ratio.dtype).eps
    for form in (weight_space_surrogate, per_sample_kl_surrogate):
        other_by_log_prob, other_by_ratio = gradient_of(form, ratio, advantages, clip_range)
        assert ((other_by_ratio - by_ratio).abs() <= rounding * advantages.abs())[untied].all()
        assert ((other_by_log_prob - by_log_prob).abs() <= rounding * (ratio * advantages).abs())[untied].all()


@settings(max_examples=300)
@given(batch=batches(safe_products=True))
def test_gradient_is_the_advantage_off_the_kill_set_and_zero_on_it(batch):
    ratio, advantages, clip_range = batch
    _, gradient = gradient_of(clip_surrogate, ratio, advantages, clip_range)
    kill = partition(ratio, advantages, clip_range).kill
    untied = ~ties(ratio, advantages, 1 - clip_range, 1 + clip_range)
    assert th.equal(gradient[untied], th.where(kill, 0.0, advantages)[untied])


def test_coefficient_of_the_kl_form_is_detached():
    """With the gradient of β the product rule would add ``-Â·log w``, which is not zero on the kill set."""
    ratio = th.tensor([1.6, 0.6], dtype=th.float64)
    by_log_prob, _ = gradient_of(per_sample_kl_surrogate, ratio, th.tensor([2.0, -2.0], dtype=th.float64), 0.2)
    assert_close(by_log_prob, th.zeros(2, dtype=th.float64), atol=1e-12, rtol=0)


@settings(max_examples=300)
@given(batch=batches())
def test_clip_gate_is_the_kill_set_but_for_ties(batch):
    ratio, advantages, clip_range = batch
    gate = clip_gate(ratio, advantages, 1 - clip_range, 1 + clip_range)
    kill = partition(ratio, advantages, clip_range).kill
    tied = ties(ratio, advantages, 1 - clip_range, 1 + clip_range)
    assert th.equal(gate[~tied], kill[~tied].to(ratio.dtype))
    assert (gate[tied] == 0.5).all()


@settings(max_examples=300)
@given(batch=batches())
def test_harmful_distance_is_positive_exactly_on_the_kill_set(batch):
    ratio, advantages, clip_range = batch
    distance = harmful_distance(ratio, advantages, 1 - clip_range, 1 + clip_range)
    assert not th.isnan(distance).any()
    assert th.equal(distance > 0, partition(ratio, advantages, clip_range).kill)
    assert (distance[advantages == 0] == -math.inf).all()


@pytest.mark.parametrize("clip_range", [0.02, 0.1, 0.2, 0.3])
def test_clip_gate_is_automatic_differentiation_to_the_last_bit(clip_range):
    ratio, advantages = boundary_batch(clip_range, n_samples=200_000, seed=1)
    low, high = 1 - clip_range, 1 + clip_range
    assert ties(ratio, advantages, low, high).any()
    effective_advantage = advantages * (1 - clip_gate(ratio, advantages, low, high))
    assert th.equal(effective_advantage, autograd_of_min(ratio, advantages, low, high))


def test_clip_gate_is_automatic_differentiation_for_a_band_that_is_not_symmetric():
    ratio, advantages = boundary_batch(0.28, n_samples=100_000, seed=2)
    effective_advantage = advantages * (1 - clip_gate(ratio, advantages, 0.8, 1.28))
    assert th.equal(effective_advantage, autograd_of_min(ratio, advantages, 0.8, 1.28))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip_range", [0.1, 0.2, 0.3])
def test_hard_gate_splits_the_gradient_at_ties_as_automatic_differentiation_does(clip_range, dtype):
    """One float outside the band, the two products may round to the same number; find such by brute force."""
    low, high = edges(clip_range, dtype)
    magnitude = th.linspace(1, 2, 1001, dtype=dtype)
    advantages = th.cat([-magnitude, magnitude]).repeat(2)
    outside = th.tensor([neighbours(low, dtype)[0], neighbours(high, dtype)[2]], dtype=dtype)
    ratio = outside.repeat_interleave(len(advantages) // 2)
    tied, kill = ties(ratio, advantages, 1 - clip_range, 1 + clip_range), partition(ratio, advantages, clip_range).kill
    for side in (kill, ~kill):
        assert 0 < (tied & side).sum() < side.sum()

    gate = make_penalty("hard").gate(PenaltyInputs(ratio, advantages, clip_range))
    assert (gate[tied] == 0.5).all()
    assert th.equal(gate[~tied], kill[~tied].to(dtype))
    assert th.equal(advantages * (1 - gate), autograd_of_min(ratio, advantages, 1 - clip_range, 1 + clip_range))


@pytest.mark.parametrize("clip_range", [0.1, 0.2])
def test_hard_penalty_is_ppo_clip(clip_range):
    ratio, advantages = boundary_batch(clip_range, n_samples=20_000, seed=3)
    inputs = PenaltyInputs(ratio, advantages, clip_range)
    hard = make_penalty("hard")
    assert th.equal(hard.effective_advantage(inputs), autograd_of_min(ratio, advantages, 1 - clip_range, 1 + clip_range))
    assert th.equal(hard.surrogate(inputs), clip_surrogate(ratio, advantages, clip_range))
    assert_close(ratio * advantages - hard.weight_space(inputs), clip_surrogate(ratio, advantages, clip_range))
    assert_close(hard.beta(inputs), -ratio * advantages * hard.gate(inputs))


def test_no_penalty_leaves_the_plain_surrogate():
    ratio, advantages = boundary_batch(0.2, n_samples=1_000, seed=4)
    inputs, none = PenaltyInputs(ratio, advantages, 0.2), make_penalty("none")
    assert th.equal(none.effective_advantage(inputs), advantages)
    assert th.equal(none.surrogate(inputs), ratio * advantages)
    assert not none.weight_space(inputs).any() and not none.beta(inputs).any()

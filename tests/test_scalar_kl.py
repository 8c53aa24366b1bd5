"""PPO-KL: the analytic divergence, the gradient of its penalty, and the rule that adapts the coefficient."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.testing import assert_close

from sb3_klip import KLipPPO, MaskableKLipPPO
from sb3_klip.algorithms.old_policy import analytic_kl
from sb3_klip.penalties import PenaltyInputs, make_penalty
from tests.envs import NoisyRewards, several
from tests.runs import Snapshots, assert_same_logs, assert_same_model, differences, quiet, state_of, updates_of

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")

SPACES = {
    "discrete": spaces.Discrete(4),
    "box": spaces.Box(-1.0, 1.0, (2,), dtype=np.float32),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(3),
    "gsde": spaces.Box(-1.0, 1.0, (2,), dtype=np.float32),
}
every_space = pytest.mark.parametrize("space", SPACES)


def make_model(space, n_envs=1, **arguments):
    defaults = dict(n_steps=64, batch_size=32, n_epochs=3, device="cpu", seed=5, use_sde=space == "gsde")
    arguments = {**defaults, "policy_kwargs": dict(net_arch=[16]), **arguments}
    return quiet(KLipPPO("MlpPolicy", several(n_envs, SPACES[space]), **arguments))


def kl_of_categoricals(old_logits, new_logits, valid=None):
    """``Σ p·log(p/q)`` over the valid actions, ``p = exp(z)/Σ exp(z)``."""
    valid = th.ones_like(old_logits, dtype=th.bool) if valid is None else valid
    log_p, log_q = (
        logits - th.where(valid, logits.exp(), 0.0).sum(dim=1, keepdim=True).log() for logits in (old_logits, new_logits)
    )
    return th.where(valid, log_p.exp() * (log_p - log_q), 0.0).sum(dim=1)


def kl_of_gaussians(old_mean, old_std, new_mean, new_std):
    """``Σ log(σ_q/σ_p) + (σ_p² + (μ_p - μ_q)²)/(2·σ_q²) - 1/2``."""
    terms = (new_std / old_std).log() + (old_std**2 + (old_mean - new_mean) ** 2) / (2 * new_std**2) - 0.5
    return terms.sum(dim=1)


def kl_of_bernoullis(old_logits, new_logits):
    """``Σ p·log(p/q) + (1 - p)·log((1 - p)/(1 - q))``, ``p = 1/(1 + exp(-z))``."""
    p, q = (1 / (1 + (-logits).exp()) for logits in (old_logits, new_logits))
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(dim=1)


def network_outputs(policy, observations):
    """What the policy computes before it makes a distribution of it: its last latent features, and their linear map."""
    latent, _ = policy.mlp_extractor(policy.extract_features(observations))
    return latent, policy.action_net(latent)


def gsde_std(policy, latent):
    """The noise is a random linear map of the latent features, so its variance is ``latent²·σ²``."""
    return (latent.detach() ** 2 @ policy.log_std.exp() ** 2 + 1e-6).sqrt()


def kl_by_hand(space, old_policy, new_policy, observations):
    """``KL(π_old || π_new)`` per observation; only the new policy gets a gradient."""
    with th.no_grad():
        old_latent, old_output = network_outputs(old_policy, observations)
    new_latent, new_output = network_outputs(new_policy, observations)
    if space == "gsde":
        old_std = gsde_std(old_policy, old_latent).detach()
        return kl_of_gaussians(old_output, old_std, new_output, gsde_std(new_policy, new_latent))
    if space == "box":
        old_std, new_std = old_policy.log_std.detach().exp(), new_policy.log_std.exp()
        return kl_of_gaussians(old_output, old_std, new_output, new_std)
    if space == "multi-binary":
        return kl_of_bernoullis(old_output, new_output)
    sizes = [4] if space == "discrete" else [3, 4]
    pairs = zip(old_output.split(sizes, dim=1), new_output.split(sizes, dim=1), strict=True)
    return sum(kl_of_categoricals(old, new) for old, new in pairs)


def shaken(policy, scale=0.3, seed=0):
    """Move every parameter of a policy by random amounts."""
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter += scale * th.randn(parameter.shape, generator=generator)
    return policy


@every_space
def test_analytic_kl_by_hand(space):
    old, new = (shaken(make_model(space).policy, seed=seed) for seed in (1, 2))
    observations = th.linspace(-1, 1, 600).reshape(3, 200).T
    with th.no_grad():
        divergence = analytic_kl(old.get_distribution(observations), new.get_distribution(observations))
        forward, backward = kl_by_hand(space, old, new, observations), kl_by_hand(space, new, old, observations)
        itself = analytic_kl(new.get_distribution(observations), copy.copy(new.action_dist))
    assert divergence.shape == (200,)
    assert_close(divergence, forward, rtol=1e-4, atol=1e-5)
    assert_close(itself, th.zeros(200), rtol=0, atol=1e-6)
    # The other direction is another number
    assert ((forward - backward).abs() > 1e-3 * forward).float().mean() > 0.9


def test_analytic_kl_of_squashed_gaussians_is_the_one_before_squashing():
    """An invertible map changes no divergence."""
    policy_kwargs = dict(net_arch=[16], squash_output=True)
    old, new = (shaken(make_model("gsde", policy_kwargs=policy_kwargs).policy, seed=seed) for seed in (1, 2))
    observations = th.linspace(-1, 1, 150).reshape(3, 50).T
    with th.no_grad():
        divergence = analytic_kl(old.get_distribution(observations), new.get_distribution(observations))
        assert_close(divergence, kl_by_hand("gsde", old, new, observations), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ["env", "sizes"],
    [
        pytest.param(InvalidActionEnvDiscrete(dim=6, n_invalid_actions=2), [6], id="discrete"),
        pytest.param(InvalidActionEnvMultiDiscrete(dims=[3, 4], n_invalid_actions=2), [3, 4], id="multi-discrete"),
        pytest.param(InvalidActionEnvMultiBinary(dims=3, n_invalid_actions=2), [2, 2, 2], id="multi-binary"),
    ],
)
def test_analytic_kl_under_action_masks_is_that_of_the_valid_actions(env, sizes):
    make = lambda: MaskableKLipPPO("MlpPolicy", env, policy_kwargs=dict(net_arch=[16]), device="cpu").policy  # noqa: E731
    old, new = (shaken(make(), seed=seed) for seed in (1, 2))
    raw = np.stack([env.reset()[0] for _ in range(100)])
    observations = th.as_tensor(raw).reshape(100, *env.observation_space.shape)
    masks = np.random.default_rng(0).random((100, sum(sizes))) < 0.6
    starts = np.cumsum([0, *sizes[:-1]])
    masks[:, starts] |= ~np.logical_or.reduceat(masks, starts, axis=1)  # at least one valid action of each kind

    divergence = analytic_kl(*(policy.get_distribution(observations, action_masks=masks) for policy in (old, new)))
    expected = 0
    outputs = [network_outputs(policy, observations)[1].split(sizes, dim=1) for policy in (old, new)]
    for old_logits, new_logits, valid in zip(*outputs, th.as_tensor(masks).split(sizes, dim=1), strict=True):
        expected = expected + kl_of_categoricals(old_logits, new_logits, valid)
    assert_close(divergence, expected, rtol=1e-4, atol=1e-5)
    assert (divergence > 1e-3).any()

    divergence.mean().backward()
    gradient = new.action_net.weight.grad.clone()
    new.zero_grad()
    expected.mean().backward()
    assert_close(gradient, new.action_net.weight.grad, rtol=1e-4, atol=1e-6)


def divergence_term(divergence, space, old_policy, new_policy, rollout_data, ratio):
    if divergence == "analytic":
        return kl_by_hand(space, old_policy, new_policy, rollout_data.observations)
    return -ratio.log() if divergence == "sample" else (ratio - 1) - ratio.log()


def update_by_hand(space, snapshots, model, divergence, beta):
    """The policy after ``-E[w·Â] + β·E[D] + vf_coef·value loss``, three gradient steps on the whole rollout."""
    old, new = make_model(space).policy, make_model(space).policy
    for policy in (old, new):
        policy.load_state_dict(snapshots.before[0])
    rollout_data = next(snapshots.rollouts[0].get(None))
    actions = rollout_data.actions.long().flatten() if space == "discrete" else rollout_data.actions
    advantages = rollout_data.advantages
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    sgd = th.optim.SGD(new.parameters(), lr=model.learning_rate)
    for _ in range(model.n_epochs):
        values, log_prob, _ = new.evaluate_actions(rollout_data.observations, actions)
        ratio = (log_prob - rollout_data.old_log_prob).exp()
        penalty = divergence_term(divergence, space, old, new, rollout_data, ratio).mean()
        value_loss = ((rollout_data.returns - values.flatten()) ** 2).mean()
        loss = -(ratio * advantages).mean() + beta * penalty + 0.5 * value_loss
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    return new.state_dict()


@pytest.mark.parametrize("divergence", ["analytic", "sample", "k3"])
@every_space
def test_one_update_by_hand(space, divergence):
    beta = 2.0
    model = make_model(
        space,
        penalty="kl_fixed",
        penalty_kwargs=dict(beta=beta, divergence=divergence),
        batch_size=64,
        learning_rate=0.1,
        max_grad_norm=1e9,
        policy_kwargs=dict(net_arch=[16], optimizer_class=th.optim.SGD),
    )
    log = Snapshots()
    model.learn(64, callback=log)
    expected = update_by_hand(space, log, model, divergence, beta)
    without = update_by_hand(space, log, model, divergence, 0.0)
    for name, parameter in model.policy.state_dict().items():
        assert_close(parameter, expected[name], rtol=1e-4, atol=1e-5)
    assert max((expected[name] - without[name]).abs().max() for name in expected) > 1e-3


@pytest.mark.parametrize("ratio", [1e-3, 0.5, 1.0, 1.7, 50.0])
def test_sampled_divergences_by_hand(ratio):
    """In ratio space, for a positive and a negative advantage."""
    advantages = th.tensor([1.5, -0.5], dtype=th.float64)
    for divergence in ("sample", "k3"):
        w = th.full((2,), ratio, dtype=th.float64, requires_grad=True)
        objective = w * advantages - 0.7 * (-w.log() if divergence == "sample" else (w - 1) - w.log())
        objective.sum().backward()
        penalty = make_penalty("kl_fixed", beta=0.7, divergence=divergence)
        inputs = PenaltyInputs(w.detach(), advantages, 0.2)
        assert_close(penalty.effective_advantage(inputs), w.grad)
        assert_close(penalty.surrogate(inputs), objective.detach())
        assert not penalty.kl_coef(inputs).any()


def test_coefficient_of_the_analytic_divergence():
    inputs = PenaltyInputs(th.tensor([0.5, 3.0]), th.tensor([1.0, -2.0]), 0.2, progress_remaining=0.25)
    penalty = make_penalty("kl_fixed", beta="lin_2")
    assert penalty.uses_kl
    assert_close(penalty.kl_coef(inputs), th.full((2,), 0.5))
    assert_close(penalty.effective_advantage(inputs), inputs.advantages)


@pytest.mark.parametrize(
    ["moved", "expected"],
    [(0.0, 0.5), (0.0133, 0.5), (0.0134, 1.0), (0.02, 1.0), (0.0299, 1.0), (0.0301, 2.0), (5.0, 2.0), (float("inf"), 2.0)],
)
def test_rule_by_hand(moved, expected):
    """Target 0.02, nothing happens between 0.02/1.5 = 0.01333 and 0.02·1.5 = 0.03."""
    penalty, asked = make_penalty("kl_adaptive"), []
    logged = penalty.after_update(lambda divergence: asked.append(divergence) or moved, 1.0)
    assert penalty.state_dict() == {"beta": expected}
    assert asked == ["analytic"]
    assert logged == {"beta": 1.0, "kl": moved}  # what the update used, not what the next one will
    assert penalty.after_update(lambda _: 0.02, 1.0)["beta"] == expected


def test_rule_with_parameters_of_ones_own():
    penalty = make_penalty("kl_adaptive", target=0.1, beta_init=3, factor=10, tolerance=2, divergence="k3")
    steps = [(0.21, 30.0), (0.19, 30.0), (0.051, 30.0), (0.049, 3.0), (0.049, 0.3)]
    for moved, expected in steps:
        penalty.after_update(lambda divergence, moved=moved: moved, 1.0)
        assert penalty.state_dict()["beta"] == pytest.approx(expected)


def test_rule_with_a_scheduled_target():
    penalty = make_penalty("kl_adaptive", target="lin_0.1")
    penalty.after_update(lambda _: 0.1, 1.0)
    assert penalty.state_dict()["beta"] == 1.0
    penalty.after_update(lambda _: 0.1, 0.5)
    assert penalty.state_dict()["beta"] == 2.0


def test_coefficient_stays_in_its_range():
    penalty = make_penalty("kl_adaptive", beta_min=0.3, beta_max=5)
    for moved, bound in [(1.0, 5.0), (0.0, 0.3)]:
        for _ in range(10):
            penalty.after_update(lambda _, moved=moved: moved, 1.0)
            assert 0.3 <= penalty.state_dict()["beta"] <= 5
        assert penalty.state_dict()["beta"] == bound
        assert_close(penalty.kl_coef(PenaltyInputs(th.ones(1), th.ones(1), 0.2)), th.tensor([bound]))


def mean_divergence(divergence, space, snapshots, i):
    """The divergence between the policies before and after an update, over all samples of its rollout."""
    old, new = make_model(space).policy, make_model(space).policy
    old.load_state_dict(snapshots.before[i])
    new.load_state_dict(snapshots.after[i])
    rollout_data = next(snapshots.rollouts[i].get(None))
    actions = rollout_data.actions.long().flatten() if space == "discrete" else rollout_data.actions
    with th.no_grad():
        _, log_prob, _ = new.evaluate_actions(rollout_data.observations, actions)
        ratio = (log_prob - rollout_data.old_log_prob).exp()
        return divergence_term(divergence, space, old, new, rollout_data, ratio).mean().item()


@pytest.mark.parametrize("batch_size", [100, 32])
@pytest.mark.parametrize("divergence", ["analytic", "sample", "k3"])
@every_space
def test_move_is_measured_over_the_whole_rollout_after_the_update(space, divergence, batch_size):
    kwargs = dict(divergence=divergence, target=0.005, factor=3, beta_max=10)
    model = make_model(
        space, n_envs=2, penalty="kl_adaptive", penalty_kwargs=kwargs, batch_size=batch_size, learning_rate=1e-2
    )
    log, beta = Snapshots(), 1.0
    model.learn(3 * 128, callback=log)
    for i, values in enumerate(log.updates):
        moved = mean_divergence(divergence, space, log, i)
        assert values["klip/kl"] == pytest.approx(moved, rel=1e-3, abs=1e-5)
        assert values["klip/beta"] == beta
        beta = min(beta * 3, 10) if moved > 0.0075 else max(beta / 3, 1e-4) if moved < 0.005 / 1.5 else beta
    assert model.penalty.state_dict() == {"beta": beta}
    assert len({values["klip/beta"] for values in log.updates}) > 1


def test_fixed_coefficient_is_logged_as_scheduled():
    updates = updates_of(make_model("discrete", penalty="kl_fixed", penalty_kwargs=dict(beta="lin_3")), 3)
    assert [values["klip/beta"] for values in updates] == pytest.approx([2.0, 1.0, 0.0])


@pytest.mark.parametrize("divergence", ["analytic", "k3"])
@every_space
def test_measuring_changes_nothing(space, divergence):
    """With a tolerance that is never left, the adaptive coefficient is the fixed one."""
    fixed = make_model(space, penalty="kl_fixed", penalty_kwargs=dict(divergence=divergence))
    expected = updates_of(fixed, 3)
    kwargs = dict(divergence=divergence, tolerance=1e12)
    adaptive = make_model(space, penalty="kl_adaptive", penalty_kwargs=kwargs)
    updates = updates_of(adaptive, 3)
    assert_same_model(adaptive, fixed)
    assert_same_logs(updates, expected)
    assert all(values["klip/beta"] == 1.0 and abs(values["klip/kl"]) > 0 for values in updates)


class Regularized(BaseFeaturesExtractor):
    """Features by a layer that acts in another way in training: dropout or batch normalization."""

    def __init__(self, observation_space, layer):
        super().__init__(observation_space, 8)
        self.layers = nn.Sequential(nn.Linear(3, 8), layer())

    def forward(self, observations):
        return self.layers(observations)


@pytest.mark.parametrize("layer", [nn.Dropout, lambda: nn.BatchNorm1d(8)], ids=["dropout", "batch-norm"])
def test_measuring_changes_nothing_in_networks_that_train_in_another_way(layer):
    extractor = dict(features_extractor_class=Regularized, features_extractor_kwargs=dict(layer=layer))
    fixed = make_model("discrete", penalty="kl_fixed", policy_kwargs=extractor)
    updates_of(fixed, 3)
    adaptive = make_model("discrete", penalty="kl_adaptive", penalty_kwargs=dict(tolerance=1e12), policy_kwargs=extractor)
    log = Snapshots()
    adaptive.learn(3 * adaptive.n_steps, callback=log)
    assert_same_model(adaptive, fixed)

    # What is measured is how far the policies are apart as they act, without chance
    old, new = (make_model("discrete", policy_kwargs=extractor).policy for _ in range(2))
    for i, values in enumerate(log.updates):
        old.load_state_dict(log.before[i])
        new.load_state_dict(log.after[i])
        old.set_training_mode(False)
        new.set_training_mode(False)
        with th.no_grad():
            moved = kl_by_hand("discrete", old, new, next(log.rollouts[i].get(None)).observations).mean().item()
        assert values["klip/kl"] == pytest.approx(moved, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("divergence", ["analytic", "k3"])
@every_space
def test_large_coefficient_means_a_small_move(space, divergence):
    moves = []
    for beta in (0.0, 30.0):
        kwargs = dict(beta=beta, divergence=divergence)
        model = make_model(space, penalty="kl_fixed", penalty_kwargs=kwargs, learning_rate=1e-2, n_epochs=10)
        log = Snapshots()
        model.learn(64, callback=log)
        moves.append(mean_divergence("analytic", space, log, 0))
    assert moves[1] < 0.7 * moves[0]


class StudentT(DiagGaussianDistribution):
    """Heavy tails, for which the KL divergence has no closed form."""

    def proba_distribution(self, mean_actions, log_std):
        self.distribution = th.distributions.StudentT(5.0, mean_actions, log_std.exp())
        return self

    def entropy(self):
        return None

    def mode(self):
        return self.distribution.loc


class StudentTPolicy(ActorCriticPolicy):
    def _build(self, lr_schedule):
        self.action_dist = StudentT(self.action_space.shape[0])
        super()._build(lr_schedule)


@pytest.mark.parametrize("name", ["kl_fixed", "kl_adaptive"])
def test_distribution_without_closed_form(name):
    env = NoisyRewards(SPACES["box"])
    model = quiet(KLipPPO(StudentTPolicy, env, n_steps=64, batch_size=32, penalty=name, device="cpu", seed=1))
    initial = state_of(model.policy)
    with pytest.raises(ValueError, match=r"StudentT has no closed form.*k3"):
        model.learn(64)
    assert not differences(model.policy.state_dict(), initial)
    sampled = dict(penalty=name, penalty_kwargs=dict(divergence="k3"))
    model = KLipPPO(StudentTPolicy, env, n_steps=64, batch_size=32, device="cpu", seed=1, **sampled)
    updates_of(model, 2)
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())


def test_a_distribution_of_one_value_is_not_divided_by_its_variance():
    """Discrete actions of which one has all probability: the divergence is finite, and so is its gradient."""
    model = quiet(KLipPPO("MlpPolicy", gym.make("CartPole-v1"), device="cpu", policy_kwargs=dict(net_arch=[])))
    old, new = model.policy.action_dist, copy.copy(model.policy.action_dist)
    old.proba_distribution(th.tensor([[60.0, -60.0]]))
    logits = th.tensor([[0.0, 0.0]], requires_grad=True)
    divergence = analytic_kl(old, new.proba_distribution(logits))
    divergence.sum().backward()
    assert_close(divergence.detach(), th.log(th.tensor([2.0])))
    assert_close(logits.grad, th.tensor([[-0.5, 0.5]]))

"""The algorithm against its paper: each formula computed again, plainly, on the same weights."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.training.policies.plain import mlp
from training.contract.errors import SettingsError
from training.contract.policy import BatchRLMTFActor
from training.policies.batchrl_mtf import BatchRLMTF
from training.policies.draws import OF_CANDIDATES, OF_OWN, OF_Z
from training.policies.fast import library
from training.policies.networks import EnsembleMLP, StateMLP, standardisation, standardise

CURVES = BatchRLMTF.curves
D, K, N = 5, 3, 200


def plain(net: StateMLP, *inputs: torch.Tensor) -> torch.Tensor:
    """The same network on repeated, concatenated inputs."""
    return mlp(net.layers, *inputs)


def test_splitting_the_first_layer_changes_nothing():
    net = StateMLP(D, K, (8, 6), 2)
    s, x = torch.randn(4, D), torch.randn(4, 3, K)
    torch.testing.assert_close(net(s, x), plain(net, s[:, None].expand(-1, 3, -1), x))
    torch.testing.assert_close(net(s, x[:, 0]), plain(net, s, x[:, 0]))


def test_gradients_are_autograds():
    net = StateMLP(D, K, (16, 9), 12)
    s, x = torch.randn(4, D), torch.randn(4, K, requires_grad=True)
    inputs = [x, *net.parameters()]
    ours = torch.autograd.grad(net(s, x).square().mean(), inputs)
    theirs = torch.autograd.grad(plain(net, s, x).square().mean(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    of_fixed = torch.autograd.grad(net(s, x, fixed=True).square().mean(), inputs, allow_unused=True)
    torch.testing.assert_close(of_fixed[0], theirs[0])
    assert all(gradient is None for gradient in of_fixed[1:])


def test_an_ensemble_is_its_members():
    ensemble = EnsembleMLP(3, D, K, (8, 6), 1)
    s, x, other = torch.randn(3, 4, D), torch.randn(3, 4, K), torch.randn(3, 4, K)
    both = ensemble(s, x, other)
    for member in range(3):
        for whole, beside in zip(both, (x, other), strict=True):
            h = torch.cat([s[member], beside[member]], dim=1)
            for i, (w, b) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
                h = (F.relu(h) if i else h) @ w[member] + b[member]
            torch.testing.assert_close(whole[member], h)


def test_one_step_is_the_papers(small, random_transitions):
    """Losses, in the order G, target, P, Q, recomputed from copies with concatenated inputs."""
    data, config = random_transitions(), small()
    learner = BatchRLMTF(config, data, seed=3)
    before = copy.deepcopy(learner)

    def drawn(which: int, *shape: int) -> torch.Tensor:
        return learner.draws.normal(0, which, *shape)

    curves = dict(zip(CURVES, learner.step().tolist(), strict=True))

    i = learner.batch(0).rows
    s = standardise(data.states, *standardisation(data.states))[i]
    next_s = standardise(data.next_states, *standardisation(data.states))[i]
    a, r, done, z_width = data.actions[i], data.rewards[i], data.dones[i], 2 * K
    # G, eq. (3)
    mean, log_std = plain(before.generator.encoder, s, a).chunk(2, dim=1)
    z = mean + log_std.exp() * drawn(OF_Z, 16, z_width)
    reconstruction = (torch.tanh(plain(before.generator.decoder, s, z)) - a).square().mean()
    posterior = torch.distributions.Normal(mean, log_std.exp())
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    kl = torch.distributions.kl_divergence(posterior, prior).mean()
    assert curves["reconstruction"] == pytest.approx(reconstruction.item(), rel=1e-5)
    assert curves["kl"] == pytest.approx(kl.item(), rel=1e-4)

    # eq. (7): the generator has been updated by now; perturbation net and critics are the targets
    def perturbed(net, state, action):
        return (action + 0.15 * torch.tanh(plain(net, state, action))).clamp(-1, 1)

    on = torch.nonzero(done < 1.0).squeeze(1)  # where a session ends, no candidates are asked for
    repeated = next_s[on].repeat_interleave(4, dim=0)
    z = drawn(OF_CANDIDATES, 16, 4, z_width)[: len(on)].clamp(-0.5, 0.5).flatten(0, 1)
    candidates = perturbed(
        before.target_perturbation.net, repeated, torch.tanh(plain(learner.generator.decoder, repeated, z))
    )
    q1, q2 = (plain(q, repeated, candidates).view(-1, 4) for q in before.target_critics.q)
    next_q = torch.zeros(16).index_put((on,), torch.minimum(q1, q2).max(dim=1).values)
    y = r + 0.95 * (1 - done) * next_q
    assert curves["target"] == pytest.approx(y.mean().item(), rel=1e-5)
    # P, eq. (5)
    z = drawn(OF_OWN, 16, z_width).clamp(-0.5, 0.5)
    moved = perturbed(before.perturbation.net, s, torch.tanh(plain(learner.generator.decoder, s, z)))
    expected = plain(before.critics.q[0], s, moved).mean()
    assert curves["perturbation_q"] == pytest.approx(expected.item(), rel=1e-4)
    # Q, eq. (6)
    loss = sum((y - plain(q, s, a).squeeze(1)).square().mean() for q in before.critics.q)
    assert curves["critic_loss"] == pytest.approx(loss.item(), rel=1e-5)
    # the critics' step is Adam's on that loss, untouched by the perturbation net's
    loss.backward()
    torch.optim.Adam(before.critics.parameters(), config.critic_lr).step()
    for ours, theirs in zip(learner.critics.parameters(), before.critics.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.data, atol=1e-6, rtol=1e-4)


def test_targets_move_every_l_steps_by_eta(small, random_transitions):
    learner = BatchRLMTF(small(target_interval=3, target_rate=0.25), random_transitions(), seed=0)
    start = copy.deepcopy(learner.target_critics.state_dict())
    learner.step()
    learner.step()
    for name, value in learner.target_critics.state_dict().items():
        assert torch.equal(value, start[name])
    learner.step()
    online = learner.critics.state_dict()
    for name, value in learner.target_critics.state_dict().items():
        torch.testing.assert_close(value, 0.25 * online[name] + 0.75 * start[name])


def test_a_session_end_masks_the_bootstrap(small, random_transitions):
    data = random_transitions(dones=1.1)
    learner = BatchRLMTF(small(), data, seed=0)
    target = learner.step()[CURVES.index("target")]
    assert target == pytest.approx(float(data.rewards[learner.batch(0).rows].mean()), rel=1e-5)


def test_actions_stay_within_rho_of_the_generators_and_within_bounds(small, random_transitions):
    learner = BatchRLMTF(small(rho=0.1), random_transitions(), seed=0)
    s, a = torch.randn(50, D), torch.rand(50, K) * 2 - 1
    moved = learner.perturbation.perturb(s, a)
    assert (moved - a).abs().max() <= 0.1 + 1e-6
    assert moved.abs().max() <= 1.0


def test_the_exported_actor_is_the_torch_policy(small, random_transitions):
    learner = BatchRLMTF(small(), random_transitions(), seed=1)
    for _ in range(20):
        learner.step()
    tensors, options = learner.export()
    actor = BatchRLMTFActor(tensors, options["rho"], options["state_clip"])
    states = torch.randn(64, D) * 20.0  # far enough for the clip to matter
    ours = learner.act(states, torch.from_numpy(tensors["latents"])).numpy()
    theirs = actor(states.numpy())
    same = np.abs(ours - theirs).max(axis=1) < 1e-5
    assert same.mean() > 0.95  # two candidates with equal Q may be told apart by a rounding
    assert tensors["latents"].shape == (7, 2 * K) and np.abs(tensors["latents"]).max() <= 0.5


def test_constant_features_and_rare_flags_are_standardised_safely():
    states = torch.zeros(100_000, 3)
    states[:, 0] = 4.0
    states[0, 1] = 1.0
    states[:, 2] = torch.randn(100_000) * 7 + 2
    mean, scale = standardisation(states)
    assert scale[0] == 1.0 and mean[0] == 4.0
    assert standardise(states, mean, scale).abs().max() <= 10.0
    assert standardise(states, mean, scale)[:, 2].std() == pytest.approx(1.0, abs=1e-3)


def test_a_frozen_generator_stays_and_each_state_keeps_its_candidates(small, random_transitions):
    data, config = random_transitions(), small(freeze_generator_after=4)
    learner = BatchRLMTF(config, data, seed=3)
    for _ in range(4):
        curves = dict(zip(CURVES, learner.step().tolist(), strict=True))
        assert curves["reconstruction"] > 0.0
    frozen = copy.deepcopy(learner.generator.state_dict())
    before = copy.deepcopy(learner)
    curves = dict(zip(CURVES, learner.step().tolist(), strict=True))
    assert curves["reconstruction"] == curves["kl"] == 0.0
    for name, value in learner.generator.state_dict().items():
        assert torch.equal(value, frozen[name])
    rows = learner.batch(4).rows
    pool = learner.pool(torch.float32)
    assert pool.shape == (N, 4, K)
    next_s = standardise(data.next_states, *standardisation(data.states))
    # each candidate is the generator's for some latent within the clip: no wider than its extremes
    z = torch.empty(500, 2 * K).uniform_(-0.5, 0.5)
    reachable = learner.generator.decode(next_s[:1], z[None])[0]
    spread = 0.1 + reachable.amax(0) - reachable.amin(0)
    assert ((pool[0] - reachable.mean(0)).abs() <= spread).all()
    # eq. (7) on the pool
    candidates = before.target_perturbation.perturb(next_s[rows], pool[rows])
    best = before.target_critics(next_s[rows], candidates).amin(dim=0).amax(dim=1)
    y = data.rewards[rows] + 0.95 * (1 - data.dones[rows]) * best
    assert curves["target"] == pytest.approx(y.mean().item(), rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize("freeze", [None, 6, 20])
def test_state_and_load_state_continue_bit_for_bit(freeze, precision, small, random_transitions):
    config = small(freeze_generator_after=freeze, precision=precision)
    if precision == "bfloat16" and library.LIBRARY is None:
        with pytest.raises(SettingsError, match="bfloat16 needs a processor"):
            BatchRLMTF(config, random_transitions(), seed=5)
        return
    whole, half = (BatchRLMTF(config, random_transitions(), seed=5) for _ in range(2))
    for _ in range(13):
        half.step()
    tensors = {name: tensor.clone() for name, tensor in half.state().items()}
    resumed = BatchRLMTF(config, random_transitions(), seed=5)
    resumed.load_state(tensors)
    for _ in range(25):
        whole.step()
    for _ in range(12):
        resumed.step()
    assert set(resumed.state()) == set(whole.state())
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name


def test_serving_latents_are_those_of_the_pool_that_act_best_together(small, random_transitions):
    data = random_transitions()
    learner = BatchRLMTF(small(serving_candidates=3, serving_pool=12), data, seed=4)
    for _ in range(30):
        learner.step()
    drawn, chosen = learner.drawn_latents(12), learner.serving_latents()

    @torch.no_grad()
    def values(latents):
        return learner._candidates_of(data.states, latents)[1]

    def best_of(latents):
        return float(values(latents).amax(dim=1).mean())

    places = [int((drawn == one).all(dim=1).nonzero()) for one in chosen]
    assert len(set(places)) == 3
    assert places[0] == int(values(drawn).mean(dim=0).argmax())
    others = [drawn[[*places[:2], other]] for other in range(12)]
    assert best_of(chosen) == pytest.approx(max(map(best_of, others)), abs=1e-6)
    assert best_of(chosen) > best_of(drawn[:3])
    assert torch.equal(learner.serving_latents(), chosen)


def test_serving_latents_are_as_drawn_without_a_larger_pool(small, random_transitions):
    learner = BatchRLMTF(small(serving_candidates=5, serving_pool=5), random_transitions(), seed=4)
    assert torch.equal(learner.serving_latents(), learner.drawn_latents(5))

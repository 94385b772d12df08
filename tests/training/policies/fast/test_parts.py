"""The compiled parts of a step are the page's up to rounding, for networks of any shape."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.training.policies.fast.compiled import compiled
from training.contract.settings import LearnerSettings
from training.policies.batchrl_mtf import BatchRLMTF
from training.policies.draws import OF_OWN, OF_Z
from training.policies.fast.library import CompiledDraws
from training.policies.fast.parameters import Flat
from training.policies.fast.parts import HALVES, Drawn, Parts
from training.policies.learner import Batch
from training.policies.networks import StateMLP
from training.trajectories import Transitions

SEED = 7
STILL = 1e-30  # the rate of a learner whose steps leave its weights where they are


class RoundedDraws(CompiledDraws):
    """Latents as the compiled step has them, in bfloat16."""

    def normal(self, step: int, which: int, *shape: int, **clip: float) -> Tensor:
        drawn = super().normal(step, which, *shape, **clip)
        return drawn if which == OF_Z else drawn.bfloat16().float()


class Case:
    """Networks and transitions of a shape, both in numbers that bfloat16 holds."""

    def __init__(
        self,
        seed: int,
        d: int,
        k: int,
        z: int,
        hidden: list[list[int]],
        batch: int,
        n: int,
        going_on: float,
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        self.named = f"{seed=}, {d=}, {k=}, {z=}, {hidden=}, {batch=}, {n=}, {going_on=}"
        self.data = transitions(2 * batch, d, k, g, 1.0 - going_on)
        self.sizes, self.hidden, self.seed = (d, k, z, batch, n), hidden, seed
        page = self._learner("float32")
        torch.manual_seed(seed)
        for net in (page.target_perturbation, page.target_critics):  # which are no longer what they target
            for parameter in net.parameters():
                parameter.add_(0.2 * parameter.abs().mean() * torch.randn(parameter.shape))
        tensors = {name: tensor.clone() for name, tensor in page.state().items()}
        for name in page.modules:
            for key in page.modules[name].state_dict():
                tensors[f"{name}.{key}"] = tensors[f"{name}.{key}"].bfloat16().float()
        self.weights = tensors | {"state_mean": torch.zeros(d), "state_scale": torch.ones(d)}

    def __repr__(self) -> str:
        return f"Case({self.named})"

    def _learner(self, precision: str) -> BatchRLMTF:
        _, _, z, batch, n = self.sizes
        generator, perturbation, critic = self.hidden
        config = LearnerSettings(
            batch_size=batch,
            gamma=0.9,
            critic_hidden=critic,
            critic_lr=STILL,
            batchrl_mtf={
                "candidates": n,
                "rho": 0.3,
                "kl_weight": 0.7,
                "latent_size": z,
                "latent_clip": 2.0,
                "generator_hidden": generator,
                "perturbation_hidden": perturbation,
                "generator_lr": STILL,
                "perturbation_lr": STILL,
                "freeze_generator_after": 1,  # step 0 is free, and step 1 is frozen
                "precision": precision,
            },
        )
        return BatchRLMTF(config, self.data, SEED)

    def page(self, step: int = 0) -> BatchRLMTF:
        """In float32, before this step."""
        learner = self._learner("float32")
        learner.load_weights(self.weights)
        learner.draws, learner.step_count = RoundedDraws(SEED, learner.device), step
        learner._pool = learner.pool(torch.bfloat16).float()
        return learner

    def parts(self, precision: str = "int8") -> Parts:
        learner = self._learner(precision)
        learner.load_weights(self.weights)
        return learner.fast.parts


def transitions(count: int, d: int, k: int, g: torch.Generator, dones: float) -> Transitions:
    empty = (
        "next_actions",
        "action_means",
        "log_densities",
        "sessions",
        "users",
        "steps",
        "by_session",
        "arms",
    )
    return Transitions(
        states=torch.randn(count, d, generator=g).bfloat16().float(),
        next_states=torch.randn(count, d, generator=g).bfloat16().float(),
        actions=(torch.rand(count, k, generator=g) * 2.0 - 1.0).bfloat16().float(),
        rewards=torch.randn(count, generator=g),
        dones=(torch.rand(count, generator=g) < dones).float(),
        **dict.fromkeys(empty, torch.zeros(count)),
        arm_names=("random",),
    )


def shapes() -> st.SearchStrategy[Case]:
    widths = st.lists(st.integers(1, 40), min_size=1, max_size=3)
    return st.builds(
        Case,
        seed=st.integers(0, 10_000),
        d=st.integers(1, 40),
        k=st.integers(1, 20),
        z=st.integers(1, 40),
        hidden=st.lists(widths, min_size=3, max_size=3),
        batch=st.integers(1, 150),
        n=st.integers(1, 11),
        going_on=st.floats(0.0, 1.0),
    )


def case(seed: int = 0, going_on: float = 1.0, **sizes: int) -> Case:
    sizes = {"d": 4, "k": 2, "z": 4, "batch": 3, "n": 2} | sizes
    return Case(seed=seed, hidden=[[20, 16]] * 3, going_on=going_on, **sizes)


def drawn(parts: Parts, step: int = 0) -> Drawn:
    learner = parts.learner
    one = parts.draw(step)
    parts.draw_latents(one, learner.pool(torch.bfloat16) if learner.frozen(step) else None)
    return one


def values(parts: Parts, step: int = 0, count: int | None = None) -> tuple[Tensor, Tensor]:
    """What is left of eq. (7) for each row whose Q' counts, of ``count`` at most, and the target of all."""
    one = drawn(parts, step)
    one.count = one.count if count is None else count
    for share in range(parts.shares):
        parts.values(one, share)
    for half in range(HALVES):
        parts.best(one, half)
    parts.target(one)
    return one.best[: one.count].clone(), one.y.clone()


def assert_near(ours: Tensor, exact: Tensor, share: float) -> None:
    """Within a share of the largest: what bfloat16 leaves of sums in which much cancels."""
    near = share * float(exact.abs().max() if len(exact) else 0.0) + 1e-3
    torch.testing.assert_close(ours, exact, atol=near, rtol=0.0)


@compiled
@given(shapes())
@settings(deadline=None, max_examples=60)
def test_targets_are_the_pages(case):
    fine, rough = case.parts("bfloat16"), case.parts("int8")
    for step in (0, 1):
        page = case.page(step)
        expected = page.target(page.batch())
        for parts, share in ((fine, 0.02), (rough, 0.05)):
            assert_near(values(parts, step)[1], expected, share)


def of_page(page: BatchRLMTF, batch: Batch, y: Tensor) -> tuple[list[float], dict[str, Tensor]]:
    """What a step's losses are, and each net's gradient as one vector."""
    reconstruction, kl = page.imitate(batch)
    q = page.perturb(batch)
    said = [reconstruction, kl, q, *page.criticise(batch, y)]
    nets = {
        "encoder": page.generator.encoder,
        "decoder": page.generator.decoder,
        "perturbation": page.perturbation,
        "first": page.critics.q[0],
        "second": page.critics.q[1],
    }
    gradients = {name: torch.cat([p.grad.flatten() for p in net.parameters()]) for name, net in nets.items()}
    return [one.item() for one in said], gradients


def of_parts(parts: Parts, one: Drawn) -> tuple[list[float], dict[str, Tensor]]:
    parts.generator(one)
    parts.perturbation(one)
    parts.critic(0, one)
    parts.critic(1, one)
    nets = {
        name: getattr(parts.nets, name) for name in ("encoder", "decoder", "perturbation", "first", "second")
    }
    gradients = {name: torch.cat([g.flatten() for g in net.gradients]) for name, net in nets.items()}
    reconstruction, kl, q, _, first, first_q, second, second_q = one.points.tolist()
    return [reconstruction, kl, q, first + second, 0.5 * (first_q + second_q)], gradients


def rounded(x: Tensor) -> Tensor:
    """To bfloat16, which gradients pass through as they are."""
    return x + (x.bfloat16().float() - x).detach()


def rough(net: StateMLP, *inputs: Tensor) -> Tensor:
    """A network whose layers' inputs are rounded; its weights are already."""
    h = rounded(torch.cat(inputs, dim=1))
    for layer in net.layers[:-1]:
        h = rounded(F.relu(layer(h)))
    return net.layers[-1](h)


def of_rounded(page: BatchRLMTF, batch: Batch, y: Tensor) -> dict[str, Tensor]:
    """Each net's gradient of eq. (3), (5) and (6), recomputed with all that lies between layers rounded."""
    own, (encoder, decoder) = page.settings.batchrl_mtf, page.generator.children()
    mean, raw = rough(encoder, batch.s, batch.a).chunk(2, dim=1)
    std = raw.clamp(-4.0, 15.0).exp()
    z = mean + std * page.draws.normal(0, OF_Z, *mean.shape)
    loss = F.mse_loss(torch.tanh(rough(decoder, batch.s, z)), batch.a)
    loss = loss + own.kl_weight * 0.5 * (mean.square() + std.square() - 2.0 * std.log() - 1.0).mean()
    z = page.draws.normal(0, OF_OWN, *mean.shape, clip=own.latent_clip)
    a = rounded(torch.tanh(rough(decoder, batch.s, z))).detach()
    moved = (a + own.rho * torch.tanh(rough(page.perturbation.net, batch.s, a))).clamp(-1.0, 1.0)
    q = rough(page.critics.q[0], batch.s, moved).mean()
    losses = {"encoder": (loss, encoder), "decoder": (loss, decoder), "perturbation": (-q, page.perturbation)}
    for name, net in zip(("first", "second"), page.critics.q, strict=True):
        losses[name] = (rough(net, batch.s, batch.a).squeeze(1) - y).square().mean(), net
    return {
        name: torch.cat(
            [g.flatten() for g in torch.autograd.grad(one, list(net.parameters()), retain_graph=True)]
        )
        for name, (one, net) in losses.items()
    }


@compiled
@given(shapes())
@settings(deadline=None, max_examples=60)
def test_gradients_are_as_near_the_pages_as_rounding_leaves_them(case):
    """Either may see a row on the other side of a ReLU, or sums in which much cancels."""
    parts = case.parts()
    one = drawn(parts)
    one.y.copy_(one.r)
    said, ours = of_parts(parts, one)
    page = case.page()
    batch = page.batch()
    theirs = of_rounded(page, batch, batch.r)
    expected, exact = of_page(page, batch, batch.r)
    assert said == pytest.approx(expected, rel=0.03, abs=0.01)
    for name, gradient in exact.items():
        far = float((ours[name] - gradient).norm())
        allowed = max(0.1 * float(gradient.norm()), 3.0 * float((theirs[name] - gradient).norm())) + 0.01
        assert far < allowed, name


class OneNet(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))


def test_a_flat_module_keeps_its_values_and_tracks_another():
    modules = [nn.ModuleList([OneNet([3, 16, 9, 2]), OneNet([4, 5, 1])]) for _ in range(2)]
    before = [[p.detach().clone() for p in module.parameters()] for module in modules]
    one, other = Flat(modules[0], lr=1e-3), Flat(modules[1])
    for module, kept in zip(modules, before, strict=True):
        assert all(torch.equal(p, k) for p, k in zip(module.parameters(), kept, strict=True))
    (net, _) = one.nets
    assert torch.equal(net.weights[0], modules[0][0].layers[0].weight.bfloat16())
    assert torch.equal(net.last_bias, modules[0][0].layers[-1].bias)
    assert len(one.learnt) == 2 and other.learnt == [] and other.state() == {}
    other.track(one, 0.25)
    for p, ours, theirs in zip(modules[1].parameters(), before[1], before[0], strict=True):
        torch.testing.assert_close(p.data, 0.25 * theirs + 0.75 * ours)
    assert torch.equal(other.nets[0].weights[1], modules[1][0].layers[1].weight.bfloat16())


@compiled
@pytest.mark.parametrize(
    "name, which", [("generator", 0), ("generator", 1), ("perturbation", 0), ("critics", 1)]
)
def test_adam_is_pytorchs(name, which):
    """Over steps whose gradients differ by orders of magnitude, by halves as by the whole, and rounded."""
    one = case(3, d=9, k=5)
    parts = learning(one)
    flat = parts.flat[name]
    own, lr = flat.learnt[which], flat.lr
    reference = own.values.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr)
    for step in range(12):
        reference.grad = torch.randn(len(own.values)) * 10.0 ** (step % 7 - 5)
        own.gradient.copy_(reference.grad)
        adam.step()
        if step % 2:
            parts.descend(name, which)
        else:
            for half in range(HALVES):
                parts.descend_half(name, which, half)
            parts.descended(name, which)
        assert torch.equal(own.rounded, own.values.bfloat16())
        assert float(own.steps) == step + 1
    torch.testing.assert_close(own.values, reference.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(own.mean, adam.state[reference]["exp_avg"], rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(own.square, adam.state[reference]["exp_avg_sq"], rtol=1e-5, atol=1e-12)


def learning(one: Case) -> Parts:
    """Of a learner whose rates are not nothing."""
    config = one._learner("int8").settings
    own = config.batchrl_mtf.model_copy(update={"generator_lr": 1e-3, "perturbation_lr": 1e-3})
    config = config.model_copy(update={"critic_lr": 1e-3, "batchrl_mtf": own})
    learner = BatchRLMTF(config, one.data, SEED)
    learner.load_weights(one.weights)
    return learner.fast.parts


@compiled
def test_what_is_in_eight_bits_follows_the_weights():
    """Values after steps of the decoder and of the targets are those that a new learner of them gives."""
    one = case(5, d=9, k=5, z=6, batch=40, n=3)
    parts = learning(one)
    before, _ = values(parts)
    for name in ("generator", "critics", "perturbation"):
        for which, own in enumerate(parts.flat[name].learnt):
            own.gradient.normal_()
            for _ in range(20):
                parts.descend(name, which)
    parts.track()
    after, _ = values(parts)
    assert not torch.equal(after, before)
    one.weights = parts.learner.state()
    assert torch.equal(values(one.parts())[0], after)


@compiled
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_what_a_state_is_worth_depends_on_no_other_and_on_no_thread(precision):
    parts = case(1, d=21, k=7, z=14, batch=75, n=10).parts(precision)
    whole, _ = values(parts)
    assert len(whole) == 75
    for count in (1, 3, 40, 75):
        assert torch.equal(values(parts, count=count)[0], whole[:count])
    torch.set_num_threads(3)
    assert torch.equal(values(parts)[0], whole)


@compiled
@given(
    d=st.integers(1, 70),
    k=st.integers(1, 20),
    batch=st.integers(1, 40),
    dones=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_rows_are_read_as_pytorch_reads_them(d, k, batch, dones, seed):
    one = case(seed, going_on=1.0 - dones, d=d, k=k, batch=batch)
    scale = torch.rand(d, generator=torch.Generator().manual_seed(seed)) * 0.2 + 1e-3  # some are clipped
    one.weights |= {"state_mean": torch.ones(d), "state_scale": scale}
    ours, batch = one.parts().draw(0), one.page().batch()
    on = torch.nonzero(batch.done < 1.0).squeeze(1)
    assert ours.count == len(on) and torch.equal(ours.on[: ours.count], on)
    assert torch.equal(ours.sa, torch.cat([batch.s, batch.a], dim=1).bfloat16())
    assert torch.equal(ours.next_s[: ours.count], batch.next_s[on].bfloat16())
    for name in ("rows", "a", "r", "done"):
        assert torch.equal(getattr(ours, name), getattr(batch, name)), name


@compiled
@pytest.mark.parametrize(
    "broken", ["generator.decoder", "target_perturbation.net", "target_critics.q.0", "target_critics.q.1"]
)
def test_what_is_no_number_is_not_hidden(broken):
    one = case(2, d=6, k=3, z=6, batch=20, n=4)
    one.weights[f"{broken}.layers.2.bias"] = one.weights[f"{broken}.layers.2.bias"] * torch.nan
    best, y = values(one.parts())
    assert best.isnan().all() and y.isnan().all()

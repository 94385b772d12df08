"""The compiled parts of a step are PyTorch's up to rounding, for networks of any shape."""

import copy
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from training.contract.errors import SettingsError
from training.contract.settings import LearnerSettings
from training.policies import kernels
from training.policies.batchrl_mtf import BatchRLMTF
from training.policies.kernels import Kernels, parts_of
from training.policies.parts import MODULES, Drawn, Given, Noise, Parts
from training.policies.passes import Flat
from training.trajectories import Transitions

NEEDS = {"avx512_bf16", "avx512bw", "avx512vl", "avx512_vnni"}
RHO, KL, GAMMA = 0.3, 0.7, 0.9


def processor_and_compiler_have_it() -> bool:
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line), "")
    return set(flags.split()) >= NEEDS and shutil.which("cc") is not None


class OneNet(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))


class Case:
    """Networks and a batch of a shape, the networks in bfloat16 and as exact ones of the same weights."""

    def __init__(
        self, seed: int, d: int, k: int, z: int, hidden: list[list[int]], batch: int, n: int, going_on: float
    ) -> None:
        torch.manual_seed(seed)
        shapes = [(d + k, 2 * z), (d + z, k), (d + k, k), (d + k, 1), (d + k, 1)]
        encoder, decoder, perturbation, *critics = (
            OneNet([i, *h, o]) for h, (i, o) in zip(hidden, shapes, strict=True)
        )
        modules = nn.ModuleList([encoder, decoder]), perturbation, nn.ModuleList(critics)
        for module in modules:
            for parameter in module.parameters():
                parameter.data = parameter.data.bfloat16().float()  # so that both have the same weights
        modules = *modules, *copy.deepcopy(modules[1:])
        self.flat, self.exact = (
            {name: Flat(copy.deepcopy(m), dtype, lr=1e-3) for name, m in zip(MODULES, modules, strict=True)}
            for dtype in (torch.bfloat16, torch.float32)
        )
        sa = torch.cat([torch.randn(batch, d), torch.rand(batch, k) * 2 - 1], dim=1).bfloat16()
        count = round(going_on * batch)
        done = torch.ones(batch)
        on = torch.randperm(batch)[:count].sort().values
        done[on] = 0.0
        low = {
            "sa": sa,
            "next_s": torch.randn(count, d),
            "own": torch.randn(batch, z),
            "latents": torch.randn(count, n, z),
            "actions": torch.rand(count, n, k) * 2 - 1,
        }
        self.low = {name: value.bfloat16() for name, value in low.items()}
        exact = {"r": torch.randn(batch), "noise": torch.randn(batch, z)}
        self.other = exact | {"a": sa[:, d:].float().contiguous(), "done": done, "on": on}
        self.count, self.sizes = count, (d, k, batch, n)

    def parts(self, precision: str = "auto", exact: bool = False) -> Parts:
        d, k, batch, n = self.sizes
        settings = LearnerSettings(
            batch_size=batch,
            gamma=GAMMA,
            batchrl_mtf={"candidates": n, "rho": RHO, "kl_weight": KL, "precision": precision},
        )
        data = transitions(3, d, k, torch.Generator().manual_seed(0), 0.5)
        given = Given(settings, data, torch.zeros(d), torch.ones(d), 7)
        return Parts(self.exact, given, Noise(7)) if exact else parts_of(self.flat, given)

    def drawn(self, parts: Parts, frozen: bool = False, count: int | None = None) -> Drawn:
        """The batch, in its place; of no more than ``count`` rows whose Q' counts."""
        drawn = parts.place(0, frozen)
        values = {name: value.to(parts.dtype) for name, value in self.low.items()} | self.other
        values["x"] = values.pop("actions" if frozen else "latents")
        values.pop("latents" if frozen else "actions", None)
        drawn.rows, drawn.count = torch.arange(self.sizes[2]), self.count
        if count is not None:
            drawn.count = count
            values |= {name: values[name][:count] for name in ("on", "next_s", "x")}
        values["best"] = torch.zeros(drawn.count)
        for name, value in values.items():
            if hasattr(drawn, name):
                getattr(drawn, name)[: len(value)] = value
            else:
                setattr(drawn, name, value)
        return drawn

    def values(self, parts: Parts, frozen: bool = False, count: int | None = None) -> tuple[Tensor, Tensor]:
        """What is left of eq. (7) for each row whose Q' counts, and the target of all."""
        drawn = self.drawn(parts, frozen, count)
        for share in range(parts.shares):
            parts.values(drawn, share, frozen)
        for half in range(parts.halves):
            parts.best(drawn, half)
        parts.target(drawn)
        return drawn.best[: drawn.count].clone(), drawn.y.clone()


def transitions(count: int, d: int, k: int, g: torch.Generator, dones: float) -> Transitions:
    empty = ("next_actions", "action_means", "log_densities", "sessions", "steps", "arms")
    return Transitions(
        states=torch.randn(count, d, generator=g),
        next_states=torch.randn(count, d, generator=g),
        actions=torch.randn(count, k, generator=g),
        rewards=torch.randn(count, generator=g),
        dones=(torch.rand(count, generator=g) < dones).float(),
        **dict.fromkeys(empty, torch.zeros(count)),
        arm_names=("random",),
    )


def shapes():
    widths = st.lists(st.integers(1, 40), min_size=1, max_size=3)
    return st.builds(
        Case,
        seed=st.integers(0, 10_000),
        d=st.integers(1, 40),
        k=st.integers(1, 20),
        z=st.integers(1, 40),
        hidden=st.lists(widths, min_size=5, max_size=5),
        batch=st.integers(1, 150),
        n=st.integers(1, 11),
        going_on=st.floats(0.0, 1.0),
    )


def case(seed: int = 0, going_on: float = 1.0, **sizes: int) -> Case:
    sizes = {"d": 4, "k": 2, "z": 4, "batch": 3, "n": 2} | sizes
    return Case(seed=seed, hidden=[[20, 16]] * 5, going_on=going_on, **sizes)


def assert_near(ours: Tensor, exact: Tensor, share: float) -> None:
    """Within a share of the largest: what bfloat16 leaves of sums in which much cancels."""
    near = share * float(exact.abs().max() if len(exact) else 0.0) + 1e-3
    torch.testing.assert_close(ours.float(), exact, atol=near, rtol=0.0)


def test_they_are_there_where_processor_and_compiler_allow():
    assert isinstance(case().parts(), Kernels) == processor_and_compiler_have_it()


@given(shapes())
@settings(deadline=None, max_examples=60)
def test_values_and_targets_are_those_of_exact_networks(case):
    exact, fine, rough = case.parts(exact=True), case.parts("bfloat16"), case.parts()
    for frozen in (False, True):
        expected = case.values(exact, frozen)
        for parts, share in ((fine, 0.02), (rough, 0.05)):
            for ours, theirs in zip(case.values(parts, frozen), expected, strict=True):
                assert_near(ours, theirs, share)


def gradients(parts: Parts, case: Case) -> tuple[list[float], dict[str, Tensor]]:
    """What all gradients' functions say, and each net's gradient as one vector."""
    drawn = case.drawn(parts)
    drawn.y = drawn.r if not hasattr(drawn, "y") else drawn.y.copy_(drawn.r)
    parts.generator(drawn)
    parts.perturbation(drawn)
    parts.critic(0, drawn)
    parts.critic(1, drawn)
    of_nets = {}
    for name in ("encoder", "decoder", "perturbation", "first", "second"):
        net = getattr(parts.nets, name)
        left = net.exact_gradients if isinstance(parts, Kernels) else net.gradients
        of_nets[name] = torch.cat([gradient.flatten().float() for gradient in left])
    points = drawn.points.tolist()
    return [*points[:3], *points[4:]], of_nets


@given(shapes())
@settings(deadline=None, max_examples=60)
def test_gradients_are_as_near_to_those_of_exact_networks_as_pytorchs(case):
    """Both may see a row on the other side of a ReLU, or sums in which much cancels."""
    said, ours = gradients(case.parts(), case)
    expected, exact = gradients(case.parts(exact=True), case)
    _, theirs = gradients(Parts(case.flat, case.parts().given, Noise(7)), case)
    assert said == pytest.approx(expected, rel=0.03, abs=0.01)
    for name, gradient in exact.items():
        far = float((ours[name] - gradient).norm())
        allowed = max(0.1 * float(gradient.norm()), 3.0 * float((theirs[name] - gradient).norm())) + 0.01
        assert far < allowed, name


@pytest.mark.parametrize(
    "name, which", [("generator", 0), ("generator", 1), ("perturbation", 0), ("critics", 1)]
)
def test_adam_is_pytorchs(name, which):
    """Over steps whose gradients differ by orders of magnitude, and with the copy in bfloat16."""
    one = case(3, d=9, k=5)
    ours, flat, beside = one.parts(), one.flat[name], one.exact[name]
    for step in range(12):
        gradient = (torch.randn(len(flat.values)) * 10.0 ** (step % 7 - 5)).bfloat16()
        for left in (flat.gradient, flat.exact_gradient, beside.gradient):
            left.copy_(gradient)
        ours.descend(name, which)
        beside.descend(which)
        assert torch.equal(flat.low, flat.values.bfloat16())
        assert torch.equal(flat.steps, beside.steps)
    torch.testing.assert_close(flat.values, beside.values, rtol=1e-5, atol=1e-7)
    for moment in flat.moments:
        torch.testing.assert_close(flat.moments[moment], beside.moments[moment], rtol=1e-5, atol=1e-12)


def test_what_is_in_eight_bits_follows_the_weights():
    """Values after steps of the decoder and of the targets are those that new parts give."""
    one = case(5, d=9, k=5, z=6, batch=40, n=3)
    parts = one.parts()
    before, _ = one.values(parts)
    for name in ("generator", "critics", "perturbation"):
        for which, own in enumerate(parts.flat[name].learnt):
            own.exact_gradient.normal_()
            own.gradient.copy_(own.exact_gradient)
            for _ in range(20):
                parts.descend(name, which)
    parts.track()
    after, _ = one.values(parts)
    assert not torch.equal(after, before)
    assert torch.equal(one.values(one.parts())[0], after)


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_what_a_state_is_worth_depends_on_no_other_and_on_no_thread(precision):
    one = case(1, d=21, k=7, z=14, batch=75, n=10)
    parts = one.parts(precision)
    whole, _ = one.values(parts)
    if isinstance(parts, Kernels):
        for count in (1, 3, 40, 75):
            assert torch.equal(one.values(parts, count=count)[0], whole[:count])
    torch.set_num_threads(3)
    assert torch.equal(one.values(parts)[0], whole)


@given(
    d=st.integers(1, 70),
    k=st.integers(1, 20),
    batch=st.integers(1, 40),
    dones=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_rows_are_read_as_pytorch_reads_them(d, k, batch, dones, seed):
    g = torch.Generator().manual_seed(seed)
    data = transitions(50, d, k, g, dones)
    rows, scale = torch.randint(50, (batch,), generator=g), torch.rand(d, generator=g) * 0.2 + 1e-3
    one = case(d=d, k=k, batch=batch)  # some are clipped
    given = one.parts().given._replace(data=data, mean=torch.ones(d), scale=scale)
    both = parts_of(one.flat, given), Parts(one.flat, given, Noise(7))
    ours, theirs = (parts.draw(parts.place(0, False), 0, rows, False) for parts in both)
    for name in ("rows", "sa", "a", "r", "done"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    counted = dict(zip(theirs.on.tolist(), theirs.next_s, strict=True))
    on = ours.on[: ours.count].tolist()
    assert set(torch.nonzero(ours.done < 1.0).flatten().tolist()) <= set(on)
    for at, next_s in zip(on, ours.next_s, strict=False):
        assert torch.equal(next_s, counted[at])


def test_noise_is_standard_normal_and_depends_on_seed_step_and_draw_alone():
    kind = type(case().parts().noise)

    def normal(seed: int, step: int, which: int) -> Tensor:
        return kind(seed).fill(torch.empty(200_000), step, which)

    first, second = normal(7, 12, 0), normal(7, 12, 1)
    for drawn in (first, second):
        assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-3
        assert 4.0 < drawn.abs().max() < 6.0
    others = (normal(8, 12, 0), normal(7, 13, 0), second)
    pairs = [
        *((first, other) for other in others),
        *((first[lag:], first[:-lag]) for lag in (1, 2, 3, 16, 64)),
    ]
    for one, other in pairs:  # five standard errors of a correlation
        for both in (one * other, (one.square() - 1.0) * (other.square() - 1.0) / 2.0):
            assert abs(float(both.mean())) < 5.0 / len(one) ** 0.5
    assert torch.equal(normal(7, 12, 0), first) and torch.equal(normal(7, 12, 1), second)
    clipped = kind(7).fill(torch.empty(100, 20, dtype=torch.bfloat16), 12, 0, 0.5)
    if kind is not Noise:  # a number does not depend on how many are asked for
        assert torch.equal(clipped.flatten(), first[:2_000].clamp(-0.5, 0.5).bfloat16())
    assert float(clipped.abs().max()) == 0.5


@pytest.mark.parametrize("broken", ["decoder", "target_perturbation", "target_first", "target_second"])
def test_what_is_no_number_is_not_hidden(broken):
    one = case(2, d=6, k=3, z=6, batch=20, n=4)
    parts = one.parts()
    net = getattr(parts.nets, broken)
    for tensor in (net.biases[-1], net.exact_bias):
        tensor.fill_(torch.nan)
    values, targets = one.values(parts)
    assert values.isnan().all() and targets.isnan().all()


def test_eight_bits_are_refused_by_name_where_there_is_no_kernel(monkeypatch, random_transitions, small):
    monkeypatch.setattr(kernels, "_LIBRARY", None)
    config = small(precision="int8")
    with pytest.raises(SettingsError, match=r"learner\.batchrl_mtf\.precision: int8 needs a processor"):
        BatchRLMTF(config, random_transitions(), seed=0)
    assert type(BatchRLMTF(small(precision="auto"), random_transitions(), seed=0).parts) is Parts

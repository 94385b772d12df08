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
from training.policies import kernels
from training.policies.batchrl_mtf import BatchRLMTF
from training.policies.kernels import Kernels, parts_of
from training.policies.parts import Nets, Parts
from training.policies.passes import Flat
from training.trajectories import Transitions

NEEDS = {"avx512_bf16", "avx512bw", "avx512vl", "avx512_vnni"}
RHO, KL = 0.3, 0.7


def processor_and_compiler_have_it() -> bool:
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line), "")
    return set(flags.split()) >= NEEDS and shutil.which("cc") is not None


class OneNet(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))


class Drawn:
    """Networks and a batch of a shape, the networks in bfloat16 and as exact ones of the same weights."""

    def __init__(
        self, seed: int, d: int, k: int, z: int, hidden: list[list[int]], batch: int, n: int
    ) -> None:
        torch.manual_seed(seed)
        shapes = [(d + k, 2 * z), (d + z, k), (d + k, k), (d + k, 1), (d + k, 1)]
        modules = [OneNet([i, *h, o]) for h, (i, o) in zip(hidden, shapes, strict=True)]
        for module in modules:
            for parameter in module.parameters():
                parameter.data = parameter.data.bfloat16().float()  # so that both have the same weights
        flats = [Flat(module, torch.bfloat16, lr=1e-3) for module in [*modules, *copy.deepcopy(modules[2:])]]
        exact = [Flat(flat.module, torch.float32, lr=1e-3) for flat in copy.deepcopy(flats)]
        self.kept = [*flats, *exact]
        self.nets, self.exact = (Nets(*(flat.nets[0] for flat in all_of)) for all_of in (flats, exact))
        self.sa = torch.cat([torch.randn(batch, d), torch.rand(batch, k) * 2 - 1], dim=1).bfloat16()
        self.s, self.a = self.sa[:, :d], self.sa[:, d:].float().contiguous()
        self.noise, self.y = torch.randn(batch, z), torch.randn(batch)
        self.z, self.next_s = torch.randn(batch, z).bfloat16(), torch.randn(batch, d).bfloat16()
        self.latents = torch.randn(batch, n, z).bfloat16()
        self.actions = (torch.rand(batch, n, k) * 2 - 1).bfloat16()


def shapes():
    widths = st.lists(st.integers(1, 40), min_size=1, max_size=3)
    return st.builds(
        Drawn,
        seed=st.integers(0, 10_000),
        d=st.integers(1, 40),
        k=st.integers(1, 20),
        z=st.integers(1, 40),
        hidden=st.lists(widths, min_size=5, max_size=5),
        batch=st.integers(1, 150),
        n=st.integers(1, 11),
    )


def assert_near(ours: Tensor, exact: Tensor, share: float) -> None:
    """Within a share of the largest: what bfloat16 leaves of sums in which much cancels."""
    near = share * float(exact.abs().max()) + 1e-3
    torch.testing.assert_close(ours.float(), exact, atol=near, rtol=0.0)


def test_they_are_there_where_processor_and_compiler_allow():
    assert isinstance(parts_of(Drawn(0, 4, 2, 4, [[8]] * 5, 3, 2).nets, "auto"), Kernels) == (
        processor_and_compiler_have_it()
    )


@given(shapes())
@settings(deadline=None, max_examples=60)
def test_values_are_those_of_exact_networks(drawn):
    parts, exact = parts_of(drawn.nets, "bfloat16"), Parts(drawn.exact)
    rough = parts_of(drawn.nets, "auto")
    for x, frozen in ((drawn.latents, False), (drawn.actions, True)):
        expected = exact.next_values(drawn.next_s.float(), x.float(), RHO, frozen)
        assert_near(parts.next_values(drawn.next_s, x, RHO, frozen), expected, 0.02)
        assert_near(rough.next_values(drawn.next_s, x, RHO, frozen), expected, 0.05)
    assert_near(parts.generated(drawn.s, drawn.z), exact.generated(drawn.s.float(), drawn.z.float()), 0.02)


def gradients(parts: Parts, drawn: Drawn) -> tuple[list[float], dict[str, Tensor]]:
    """What all gradients' functions return, and each net's gradient as one vector."""
    dtype = parts.nets.first.weights[0].dtype
    sa, d = drawn.sa.to(dtype), drawn.s.shape[1]
    said = [
        *parts.generator_gradient(sa, drawn.a, drawn.noise, KL),
        parts.perturbation_gradient(sa[:, :d], sa[:, d:].contiguous(), RHO),
        *parts.critic_gradient(0, sa, drawn.y),
        *parts.critic_gradient(1, sa, drawn.y),
    ]
    of_nets = {}
    for name in ("encoder", "decoder", "perturbation", "first", "second"):
        net = getattr(parts.nets, name)
        left = net.exact_gradients if parts.exact_gradients else net.gradients
        of_nets[name] = torch.cat([gradient.flatten().float() for gradient in left])
    return [float(one) for one in said], of_nets


@given(shapes())
@settings(deadline=None, max_examples=60)
def test_gradients_are_as_near_to_those_of_exact_networks_as_pytorchs(drawn):
    """Both may see a row on the other side of a ReLU, or sums in which much cancels."""
    said, ours = gradients(parts_of(drawn.nets, "auto"), drawn)
    expected, exact = gradients(Parts(drawn.exact), drawn)
    _, theirs = gradients(Parts(drawn.nets), drawn)
    assert said == pytest.approx(expected, rel=0.03, abs=0.01)
    for name, gradient in exact.items():
        far = float((ours[name] - gradient).norm())
        allowed = max(0.1 * float(gradient.norm()), 3.0 * float((theirs[name] - gradient).norm())) + 0.01
        assert far < allowed, name


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_what_a_state_is_worth_depends_on_no_other_and_on_no_thread(precision):
    drawn = Drawn(1, 21, 7, 14, [[40, 30]] * 5, 75, 10)
    parts = parts_of(drawn.nets, precision)
    whole = parts.next_values(drawn.next_s, drawn.latents, RHO, False)
    if isinstance(parts, Kernels):
        for part in (slice(0, 1), slice(3, 40), slice(70, 75)):
            some = parts.next_values(drawn.next_s[part], drawn.latents[part], RHO, False)
            assert torch.equal(some, whole[part])
    torch.set_num_threads(3)
    assert torch.equal(parts.next_values(drawn.next_s, drawn.latents, RHO, False), whole)


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
    random = {
        name: torch.randn(shape, generator=g)
        for name, shape in {
            "states": (50, d),
            "next_states": (50, d),
            "actions": (50, k),
            "rewards": (50,),
        }.items()
    }
    last = (torch.rand(50, generator=g) < dones).float()
    empty = dict.fromkeys(
        ("next_actions", "action_means", "log_densities", "sessions", "steps", "arms"), torch.zeros(50)
    )
    data = Transitions(**random, **empty, dones=last, arm_names=("random",))
    rows, scale = (
        torch.randint(50, (batch,), generator=g),
        torch.rand(d, generator=g) * 0.2 + 1e-3,
    )  # some are clipped
    nets = Drawn(0, d, k, 2, [[3]] * 5, 1, 1).nets
    ours, theirs = (
        parts.rows(data, rows, torch.ones(d), scale) for parts in (parts_of(nets, "auto"), Parts(nets))
    )
    for name in ("rows", "sa", "a", "r", "done"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    counted = dict(zip(theirs.on.tolist(), theirs.next_s, strict=True))
    assert set(torch.nonzero(ours.done < 1.0).flatten().tolist()) <= set(ours.on.tolist())
    for at, next_s in zip(ours.on.tolist(), ours.next_s, strict=True):
        assert torch.equal(next_s, counted[at])


def test_noise_is_standard_normal_and_depends_on_seed_and_step_alone():
    parts = parts_of(Drawn(0, 4, 2, 4, [[8]] * 5, 3, 2).nets, "auto")
    noise = parts.noise(7, 12)
    first, second = noise.normal(200_000), noise.normal(200_000)
    for drawn in (first, second):
        assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-3
        assert 4.0 < drawn.abs().max() < 6.0
    others = (parts.noise(8, 12).normal(200_000), parts.noise(7, 13).normal(200_000), second)
    pairs = [
        *((first, other) for other in others),
        *((first[lag:], first[:-lag]) for lag in (1, 2, 3, 16, 64)),
    ]
    for one, other in pairs:  # five standard errors of a correlation
        for both in (one * other, (one.square() - 1.0) * (other.square() - 1.0) / 2.0):
            assert abs(float(both.mean())) < 5.0 / len(one) ** 0.5
    again = parts.noise(7, 12)
    assert torch.equal(again.normal(200_000), first) and torch.equal(again.normal(200_000), second)
    clipped = parts.noise(7, 12).latents(0.5, 100, 20)
    assert clipped.dtype == torch.bfloat16 and clipped.shape == (100, 20)
    if isinstance(parts, Kernels):  # a number does not depend on how many are asked for
        assert torch.equal(clipped.flatten(), first[:2_000].clamp(-0.5, 0.5).bfloat16())


@pytest.mark.parametrize("broken", ["decoder", "target_perturbation", "target_second"])
def test_what_is_no_number_is_not_hidden(broken):
    drawn = Drawn(2, 6, 3, 6, [[20, 16]] * 5, 20, 4)
    net = getattr(drawn.nets, broken)
    for tensor in (net.biases[-1], net.exact_bias):
        tensor.fill_(torch.nan)
    values = parts_of(drawn.nets, "auto").next_values(drawn.next_s, drawn.latents, RHO, False)
    assert values.isnan().all()


def test_eight_bits_are_refused_by_name_where_there_is_no_kernel(monkeypatch, random_transitions, small):
    monkeypatch.setattr(kernels, "_LIBRARY", None)
    config = small(precision="int8")
    with pytest.raises(SettingsError, match=r"learner\.precision: int8 needs a processor"):
        BatchRLMTF(config, random_transitions(), seed=0)
    assert type(BatchRLMTF(small(precision="auto"), random_transitions(), seed=0).parts) is Parts

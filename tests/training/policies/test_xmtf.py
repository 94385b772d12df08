"""xMTF: cells that cannot fall, taught by the outer stage's order, ranking alike in torch and numpy."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.contract.errors import DataError
from training.contract.fusion import Fusion, Head
from training.contract.policy import make_actor
from training.policies.xmtf import XMTF, Cells, Formula, Modulation, scores

D, K = 5, 3
FUSION = Fusion(
    (
        Head("click", beta=0.1, low=0.0, high=2.0, static=1.0),
        Head("like", beta=0.05, low=0.0, high=1.0, static=0.5),
        Head("hate", beta=0.1, low=-1.0, high=0.0, static=-0.5),
    )
)


@pytest.fixture
def learner(random_transitions, small):
    return XMTF(small(xmtf={"hidden": (8,), "units": 2}), random_transitions(), 1, FUSION)


@given(
    seed=st.integers(0, 10_000),
    spread=st.floats(0.1, 5.0),
    head=st.integers(0, K - 1),
    pair=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
    others=st.lists(st.floats(0.0, 1.0), min_size=K, max_size=K),
)
def test_a_cell_never_falls_for_a_wanted_head_nor_rises_for_an_unwanted_one(seed, spread, head, pair, others):
    """Whatever the weights: nothing here was trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        cells = Cells(FUSION, torch.rand(20, K), (torch.zeros(D), torch.ones(D)), (6,), 3).double()
        for parameter in cells.parameters():
            torch.nn.init.normal_(parameter, std=spread)
        state = torch.randn(1, D).double() * 3
    low, high = sorted(pair)
    items = torch.tensor([others, others]).double()
    items[0, head], items[1, head] = low, high
    with torch.no_grad():
        first, second = cells(items[None], state)[0].tolist()
    rise = (second - first) * (-1.0 if head == 2 else 1.0)
    assert rise >= -1e-9
    if high - low > 1e-3 and spread < 1.0:
        assert rise > 0.0


@pytest.mark.parametrize("form", ["log_sum", "sum"])
def test_the_teacher_of_the_first_round_is_the_formula(form):
    fusion = dataclasses.replace(FUSION, form=form)
    rng = np.random.default_rng(0)
    o, a = rng.random((4, 6, K)), rng.uniform(-1, 1, (4, K))
    expected = fusion.score(o, fusion.to_weights(a))
    np.testing.assert_allclose(scores(Formula(fusion), o, np.zeros((4, D)), a), expected, atol=1e-5)


def test_one_step_teaches_pairs_by_bpr(learner):
    before = copy.deepcopy(learner)
    ranking = learner.step()[-1]
    # the outer stage goes first, with the same noise as BatchRL-MTF alone
    alone = super(XMTF, before).step()
    assert len(alone) + 1 == len(XMTF.curves)
    own = before.settings.xmtf
    rows = torch.randint(len(before.data), (own.states,), generator=before.noise)
    pairs = torch.randint(len(before.items), (own.states, own.pairs, 2), generator=before.noise)
    total = 0.0
    for row, of_state in zip(rows.tolist(), pairs, strict=True):
        state = before.data.states[row : row + 1]
        action = before.act(state, before.latents)[0].double().numpy()
        o = before.items[of_state]  # [pairs, 2, k]
        taught = FUSION.score(o.double().numpy(), FUSION.to_weights(action))
        with torch.no_grad():
            f = before.cells(o.flatten(0, 1)[None], state).view(-1, 2).double().numpy()
        better = np.where(taught[:, 0] > taught[:, 1], 1.0, -1.0)
        total += np.log1p(np.exp(-better * (f[:, 0] - f[:, 1]))).sum()
    assert ranking.item() == pytest.approx(total / pairs[..., 0].numel(), rel=1e-4)


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of pairs of the items of a request that both order alike."""
    i, j = np.triu_indices(ours.shape[1], 1)
    return float(((ours[:, i] > ours[:, j]) == (theirs[:, i] > theirs[:, j])).mean())


def test_the_cells_learn_the_order_of_the_outer_stage(random_transitions, small):
    config = small(xmtf={"hidden": (16,), "units": 2, "lr": 5e-3})
    learner = XMTF(config, random_transitions(), 1, FUSION)
    rng = np.random.default_rng(0)
    states, o = random_transitions().states[:50].numpy(), rng.random((50, 12, K))

    def measured() -> float:
        actions = learner.act(torch.from_numpy(states), learner.latents).numpy()
        return agreement(scores(learner.cells, o, states), scores(learner.teacher, o, states, actions))

    start = measured()
    for _ in range(300):
        learner.step()
    assert measured() > max(0.9, start)


def test_the_exported_actor_ranks_and_acts_as_the_learner(learner):
    for _ in range(20):
        learner.step()
    tensors, options = learner.export()
    actor = make_actor("xmtf", tensors, options)
    rng = np.random.default_rng(0)
    states = (rng.normal(size=(9, D)) * 20).astype(np.float32)  # far enough for the clip to matter
    o = rng.random((9, 7, K))
    np.testing.assert_allclose(actor.scores(o, states), scores(learner.cells, o, states), atol=1e-4)
    # one request is a row of many
    np.testing.assert_allclose(actor.scores(o[3], states[3]), actor.scores(o, states)[3], atol=1e-5)
    actions = learner.act(torch.from_numpy(states), learner.latents).numpy()
    assert (np.abs(actor(states) - actions).max(axis=1) < 1e-5).mean() > 0.8


def test_a_later_round_explores_around_the_order_of_the_cells_before(learner, random_transitions, small):
    data = random_transitions()
    outer = Modulation.of(learner.cells, data)
    rng = np.random.default_rng(0)
    states, o = data.states[:40].numpy(), rng.random((40, 10, K)).astype(np.float32)
    still = scores(outer, o, states, np.zeros((40, K)))
    assert agreement(still, scores(learner.cells, o, states)) > 0.99
    moved = scores(outer, o, states, rng.uniform(-1, 1, (40, K)))
    assert 0.5 < agreement(moved, still) < 0.999

    later = XMTF(learner.settings, data, 2, FUSION, outer)
    np.testing.assert_allclose(scores(later.cells, o, states), scores(learner.cells, o, states), atol=1e-5)
    kept = copy.deepcopy(outer.state_dict())
    for _ in range(5):
        later.step()
    assert all(torch.equal(kept[name], value) for name, value in later.outer.state_dict().items())
    assert not torch.equal(later.cells.net.layers[0].weight, outer.cells.net.layers[0].weight)
    with pytest.raises(ValueError, match="no fusion weights"):
        later.export()


def test_a_log_without_items_is_refused(random_transitions, small):
    data = random_transitions()
    with pytest.raises(DataError, match="item_scores"):
        XMTF(small(), dataclasses.replace(data, item_scores=None), 0, FUSION)
    nothing = torch.full_like(data.item_rewards, float("nan"))
    with pytest.raises(DataError, match="the log has 0 items"):
        XMTF(small(), dataclasses.replace(data, item_rewards=nothing), 0, FUSION)

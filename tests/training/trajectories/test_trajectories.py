"""What the learner and the judge read: which rows, in which order, in which split."""

import resource
import tracemalloc
from collections import Counter
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from training import trajectories
from training.contract.errors import DataError, MtfError
from training.contract.settings import ProfileFeature, StateSettings
from training.trajectories import export, window

DAY = date(2026, 1, 7)
NO_MIX = {"mixed_exploration": False}
MAPPED = {"map_above_bytes": 0}
COUNTED = pa.proxy_memory_pool(pa.default_memory_pool())  # must outlive what is allocated of it


def half(states, rng):
    return np.full((len(states), 2), 0.5, dtype=np.float32)


def rewrite(path: Path, change) -> None:
    rows = pq.read_table(path, partitioning=None).to_pylist()
    rows = change(rows) or rows
    schema = pq.read_schema(path)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def part(world, day=DAY) -> Path:
    return world.settings.layout.mart("fct_transitions") / f"dt={day.isoformat()}" / "part-0.parquet"


def test_shapes_and_values_are_those_of_the_log(toy):
    world = toy(learner=NO_MIX)
    world.log(30)
    data = trajectories.load(world.settings, DAY)
    rows = sum(pq.read_metadata(part(world, day)).num_rows for day in world.days)
    assert len(data.train) + len(data.test) == rows
    d = world.settings.state_spec.width
    for split in (data.train, data.test):
        assert split.states.shape == split.next_states.shape == (len(split), d)
        assert split.actions.shape == split.next_actions.shape == (len(split), 2)
        assert split.states.dtype == split.rewards.dtype == split.dones.dtype == torch.float32
        ended = split.dones == 1
        assert (split.next_states[ended] == 0).all() and (split.next_actions[ended] == 0).all()
        expected = world.reward(split.states.numpy(), split.actions.numpy())
        np.testing.assert_allclose(split.rewards.numpy(), expected, atol=1e-5)
        moved = world.move(split.states.numpy(), split.actions.numpy())
        np.testing.assert_allclose(split.next_states[~ended].numpy(), moved[~ended.numpy()], atol=1e-6)


def test_next_actions_are_what_was_served_at_the_next_state(toy):
    world = toy(learner=NO_MIX)
    world.log(20)
    train = trajectories.load(world.settings, DAY).train
    for row in torch.nonzero(train.dones == 0).flatten().tolist():
        following = (train.sessions == train.sessions[row]) & (train.steps == train.steps[row] + 1)
        assert torch.equal(train.actions[following][0], train.next_actions[row])


def test_the_test_split_is_the_last_sessions_and_splits_none(toy):
    world = toy(learner=NO_MIX, evaluation={"test_share": 0.25})
    world.log(40)
    data = trajectories.load(world.settings, DAY)
    assert not set(data.train.sessions.tolist()) & set(data.test.sessions.tolist())
    assert data.train.sessions.max() < data.test.sessions.min()  # numbered by their start
    share = len(data.test) / (len(data.train) + len(data.test))
    assert 0.25 <= share < 0.35
    assert (data.test.steps == 0).sum() == len(torch.unique(data.test.sessions))


def test_users_are_those_of_the_log_in_both_splits(toy):
    world = toy(learner=NO_MIX)
    world.log(20)
    data = trajectories.load(world.settings, DAY)
    logged = {}  # a state belongs to one request
    for day in world.days:
        for row in pq.read_table(part(world, day), partitioning=None).to_pylist():
            logged[np.float32(row["state"]).tobytes()] = row["user_id"]
    for split in (data.train, data.test):
        assert split.users.tolist() == [logged[state.tobytes()] for state in split.states.numpy()]
        assert split.users.dtype == torch.int64
    assert len(torch.unique(data.test.users)) > 1


def test_what_was_drawn_once_for_a_session_is_known_and_a_line_that_does_not_say_was_not(toy):
    world = toy(learner=NO_MIX)
    world.log(20)
    units = {0: "session", 1: "request", 2: None}

    def change(rows):
        for row in rows:
            row["exploration_unit"] = units[row["user_id"] % 3]

    for day in world.days:
        rewrite(part(world, day), change)
    data = trajectories.load(world.settings, DAY)
    for split in (data.train, data.test):
        assert split.by_session.tolist() == (split.users % 3 == 0).tolist()
        assert split.by_session.dtype == torch.bool and split.by_session.any()


def test_the_order_of_rows_in_the_file_does_not_matter(toy):
    world = toy()
    world.log(30)
    before = trajectories.load(world.settings, DAY)
    rewrite(part(world), lambda rows: rows[::-1])
    after = trajectories.load(world.settings, DAY)
    assert after.sha256() == before.sha256()
    assert after.partitions == before.partitions


def test_a_changed_reward_changes_the_content_hash_of_its_day_alone(toy):
    world = toy()
    world.log(30)
    before = trajectories.load(world.settings, DAY)

    def change(rows):
        rows[0]["reward"] += 1.0

    rewrite(part(world), change)
    after = trajectories.load(world.settings, DAY)
    earlier = (DAY - timedelta(days=1)).isoformat()
    assert after.sha256() != before.sha256()
    assert after.partitions[earlier] == before.partitions[earlier]
    assert after.partitions[DAY.isoformat()] != before.partitions[DAY.isoformat()]


def test_only_days_of_the_window_are_read(toy):
    world = toy(learner=NO_MIX | {"window_days": 1})
    world.log(10)
    data = trajectories.load(world.settings, DAY)
    assert list(data.partitions) == [DAY.isoformat()]


def test_mixed_exploration_takes_equal_numbers_of_sessions_of_both_groups(toy):
    world = toy()
    world.log(60, {"champion": half, "random": half, "static": half, "noise": half, "also": half})
    rewrite(part(world), lambda rows: [r for r in rows if not (r["arm"] == "noise" and r["user_id"] > 20)])
    data = trajectories.load(world.settings, DAY)
    counts = data.train.arm_counts()
    assert set(counts) == {"random", "noise"}
    assert counts["random"]["sessions"] == counts["noise"]["sessions"] > 5
    assert {"champion", "static"} <= set(data.test.arm_counts())  # the judge sees every arm
    assert data.warnings == ()
    assert data.left_out["not_mixed_exploration"] > 0


@pytest.mark.parametrize(
    ("arms", "trained", "warning"),
    [
        (("random", "champion"), {"random"}, "no session of the noise group"),
        (("static", "champion"), {"static", "champion"}, "all arms are trained on"),
    ],
)
def test_an_empty_exploration_group_is_said(toy, arms, trained, warning):
    world = toy()
    world.log(20, dict.fromkeys(arms, half))
    data = trajectories.load(world.settings, DAY)
    assert set(data.train.arm_counts()) == trained
    assert warning in data.warnings[0]


def test_the_replay_keeps_the_newest(toy):
    world = toy(learner=NO_MIX)
    world.log(30)
    whole = trajectories.load(world.settings, DAY).train
    world = toy(learner=NO_MIX | {"replay_capacity": 50})
    data = trajectories.load(world.settings, DAY)
    assert len(data.train) == 50
    assert torch.equal(data.train.states, whole.states[-50:])
    assert data.left_out["over_replay_capacity"] == len(whole) - 50


def of_one_user(rows):
    """The first twelve sessions are of one user, and the longest of the others never ends."""
    for row in rows:
        row["user_id"] = 0 if int(row["session_id"][-5:]) < 12 else row["user_id"]


def test_a_user_and_a_session_are_learnt_from_up_to_their_limits_and_the_rest_is_counted(toy):
    world = toy(learner=NO_MIX)
    world.log(40)
    for day in world.days:
        rewrite(part(world, day), of_one_user)
    tables = {day: pq.read_table(part(world, day), partitioning=None) for day in world.days}
    rows = [row | {"dt": day} for day, table in tables.items() for row in table.to_pylist()]
    rows.sort(key=lambda row: (row["event_ts"], row["request_id"]))
    seen, kept, over = Counter(), [], Counter()
    for row in rows:
        whose = row["user_id"], row["dt"]
        if row["step"] >= 4:
            over["max_session_requests"] += 1
        elif seen[whose] >= 7:
            over["max_user_requests"] += 1
        else:
            kept.append(row)
        seen[whose] += 1
    assert min(over["max_session_requests"], over["max_user_requests"]) > 5 and seen[0, DAY] > 30

    whole = trajectories.load(world.settings, DAY, every=True).every
    assert len(whole) == len(rows)
    limits = {"max_user_requests": 7, "max_session_requests": 4}
    limited = toy(learner=NO_MIX | limits).settings
    data = trajectories.load(limited, DAY, every=True)
    order = {row["request_id"]: place for place, row in enumerate(rows)}
    same = whole.take(torch.tensor([order[row["request_id"]] for row in kept]))
    for name in ("states", "rewards", "next_states", "next_actions", "dones", "steps", "users"):
        assert torch.equal(getattr(data.every, name), getattr(same, name)), (
            name
        )  # s' too, where it is cut off
    assert {name: data.left_out[f"over_{name}"] for name in over} == over
    assert len(data.train) + len(data.test) == len(kept)
    told = " ".join(data.warnings)
    assert "users with more than learner.max_user_requests, 7:" in told
    assert f"{over['max_session_requests']} of their requests are not learnt from" in told

    alone = trajectories.load(toy(learner=NO_MIX | limits | {"window_days": 1}).settings, DAY, every=True)
    assert len(alone.every) == sum(row["dt"] == DAY for row in kept)  # whatever else is in the window
    rewrite(part(world), lambda rows: rows.reverse())
    assert torch.equal(trajectories.load(limited, DAY, every=True).every.rewards, data.every.rewards)


def test_truncated_rows_and_other_specifications_are_left_out_and_counted(toy):
    world = toy(learner=NO_MIX)
    world.log(30)
    whole = len(trajectories.load(world.settings, DAY).train.rewards)
    assert whole
    expected = {}

    def change(rows):
        ends = [r for r in rows if r["done"]]
        for row in ends[:3]:
            row |= {"done": False, "truncated": True}
        second = [r for r in rows if r["step"] == 1]
        for row in second[-4:]:  # states of other widths must not be mixed up
            row |= {"state_spec": "sother", "state": [1.0], "next_state": None if row["done"] else [1.0]}
        expected["other"] = 4
        expected["truncated"] = sum(r["truncated"] and r["state_spec"] != "sother" for r in rows)

    rewrite(part(world), change)
    left_out = trajectories.load(world.settings, DAY).left_out
    assert left_out["other_state_spec"] == expected["other"]
    assert left_out["truncated"] == expected["truncated"] == 3
    assert left_out["next_of_other_state_spec"] == 4  # the requests before these have no usable s'


def fault(**values):
    def change(rows):
        rows[5] |= values

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (fault(state=[1.0, 2.0]), "state has 2 entries"),
        (fault(action=[0.0, 1.7]), r"action \[0\.\s+1\.7\] lies outside"),
        (fault(action=None), "action has null, expected 2"),
        (fault(action=[0.0, float("nan")]), "holds a value not a number"),
        (fault(reward=None), "reward is null"),
        (fault(reward=float("inf")), "reward is not a number"),
        (fault(next_state=None, done=False, truncated=False), "neither done nor truncated"),
    ],
)
def test_a_faulty_row_is_named(toy, change, says):
    world = toy()
    world.log(10)
    name = {}

    def and_remember(rows):
        change(rows)
        name["request"] = rows[5]["request_id"]

    rewrite(part(world), and_remember)
    with pytest.raises(DataError, match=says) as error:
        trajectories.load(world.settings, DAY)
    assert name["request"] in str(error.value) and "part-0.parquet" in str(error.value)


def test_a_missing_day_an_unreadable_file_and_a_missing_column_are_named(toy):
    world = toy()
    with pytest.raises(DataError, match="run the transform"):
        trajectories.load(world.settings, DAY)
    world.log(10)
    table = pq.read_table(part(world), partitioning=None)
    pq.write_table(table.drop_columns(["reward"]), part(world))
    with pytest.raises(DataError, match="lacks the column reward"):
        trajectories.load(world.settings, DAY)
    part(world).write_bytes(part(world).read_bytes()[:300])
    with pytest.raises(DataError, match="not a readable export"):
        trajectories.load(world.settings, DAY)


def test_no_usable_row_is_an_error(toy):
    world = toy()
    world.log(5)
    for day in world.days:

        def other(rows):
            for row in rows:
                row["state_spec"] = "sother"

        rewrite(part(world, day), other)
    with pytest.raises(DataError, match="no usable transition"):
        trajectories.load(world.settings, DAY)


def test_a_day_without_decisions_adds_nothing(toy):
    world = toy()
    world.log(10)
    yesterday = part(world, DAY - timedelta(days=1))
    pq.write_table(pq.read_table(yesterday, partitioning=None).slice(0, 0), yesterday)
    data = trajectories.load(world.settings, DAY)
    assert data.partitions[(DAY - timedelta(days=1)).isoformat()]["rows"] == 0
    assert len(data.train) > 0


def test_what_only_some_learners_read_is_read_when_asked_for(toy):
    world = toy(learner=NO_MIX)
    world.log(30)
    assert trajectories.load(world.settings, DAY).train.item_scores is None
    needs = ("watch_rewards", "item_scores", "item_rewards")
    data = trajectories.load(world.settings, DAY, needs)
    assert data.partitions != trajectories.load(world.settings, DAY).partitions  # of other content
    for split in (data.train, data.test):
        torch.testing.assert_close(split.watch_rewards, 4.0 * split.states[:, 0] - 1.5)
        assert split.item_scores.shape == (len(split), 4, 2) and split.item_rewards.shape == (len(split), 4)
        shown = torch.isfinite(split.item_rewards)
        assert set(shown.sum(dim=1).tolist()) == {2, 3, 4} and shown[:, 0].all()
        assert (split.item_scores[~shown] == 0).all()
        expected = split.item_scores @ torch.tensor([0.2, 0.8])
        torch.testing.assert_close(split.item_rewards[shown], expected[shown])


def test_days_with_shorter_pages_and_requests_that_showed_nothing_fit_in(toy):
    world = toy(learner=NO_MIX)
    world.log(30)

    def shorten(rows):
        for row in rows:
            row |= {"item_scores": row["item_scores"][:2], "item_rewards": row["item_rewards"][:1]}
        rows[0] |= {"item_scores": None, "item_rewards": None}

    rewrite(part(world, DAY - timedelta(days=1)), shorten)
    train = trajectories.load(world.settings, DAY, ("item_scores",)).train
    shown = torch.isfinite(train.item_rewards).sum(dim=1)
    assert set(shown.tolist()) == {0, 1, 2, 3, 4} and (shown == 0).sum() == 1


def test_an_export_of_an_older_version_is_refused_only_where_it_matters(toy):
    world = toy()
    world.log(10)
    old = part(world, DAY - timedelta(days=1))
    table = pq.read_table(old, partitioning=None)
    pq.write_table(table.drop_columns(["watch_reward", "item_scores", "item_rewards"]), old)
    assert len(trajectories.load(world.settings, DAY).train)
    with pytest.raises(
        DataError, match=r"part-0.parquet lacks the column watch_reward .* transform that day"
    ):
        trajectories.load(world.settings, DAY, ("watch_rewards",))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (fault(item_scores=[0.5, 0.5, 0.5]), "item_scores has 3 entries, expected 2 each"),
        (fault(item_rewards=[float("nan")] * 4), "item_rewards holds a value not a number"),
        (fault(item_rewards=[1.0]), "of different numbers of items"),
    ],
)
def test_faulty_items_are_named(toy, change, says):
    world = toy()
    world.log(10)
    rewrite(part(world), change)
    with pytest.raises(DataError, match=says):
        trajectories.load(world.settings, DAY, ("item_scores", "item_rewards"))


def test_a_mapped_set_is_the_one_in_memory_and_leaves_no_file(toy):
    world = toy()
    world.log(30)
    needs = ("watch_rewards", "item_scores", "item_rewards")
    held = trajectories.load(world.settings, DAY, needs)
    world = toy(learner=MAPPED)
    before = sorted(world.settings.data.rglob("*"))
    mapped = trajectories.load(world.settings, DAY, needs)
    assert sorted(world.settings.data.rglob("*")) == before
    assert mapped.sha256() == held.sha256()
    assert mapped.partitions == held.partitions
    mapped.train.rewards[0] = 7.0  # a mapping can be written to, and is nobody else's
    assert trajectories.load(world.settings, DAY, needs).sha256() == held.sha256()


@pytest.mark.parametrize("reverse", [False, True])
def test_the_parts_that_a_day_is_read_in_do_not_matter(toy, monkeypatch, reverse):
    world = toy(learner=MAPPED)
    world.log(30)
    needs = ("item_scores",)
    whole = trajectories.load(world.settings, DAY, needs)
    if reverse:
        rewrite(part(world), lambda rows: rows[::-1])
    monkeypatch.setattr(export, "PART_ROWS", 7)
    parts = trajectories.load(world.settings, DAY, needs)
    assert parts.sha256() == whole.sha256()
    assert parts.partitions == whole.partitions


def test_sessions_that_go_on_over_midnight_know_what_was_served_next(toy):
    world = toy(learner=NO_MIX | MAPPED)
    world.log(20)
    whole = trajectories.load(world.settings, DAY)
    yesterday = part(world, DAY - timedelta(days=1))
    rows = pq.read_table(yesterday, partitioning=None).to_pylist()
    schema = pq.read_schema(yesterday)
    late = [row for row in rows if row["step"] >= 2]
    rewrite(yesterday, lambda rows: [row for row in rows if row["step"] < 2])
    today = pq.read_table(part(world), partitioning=None).to_pylist()
    # rows of both days lie between each other in time: the order is that of the window, not of the files
    pq.write_table(pa.Table.from_pylist(late + today, schema=schema), part(world))
    assert trajectories.load(world.settings, DAY).sha256() == whole.sha256()


def test_loading_a_mapped_set_takes_a_part_of_its_size_in_memory(toy, monkeypatch):
    world = toy(learner=NO_MIX | MAPPED | {"window_days": 1})
    wide = StateSettings(profile=[ProfileFeature(column=f"flag_{i}", kind="flag") for i in range(300)])
    world.settings = world.settings.model_copy(update={"state": wide})
    rows = world.rows(DAY, 200, {"random": half})
    names = ("request_id", "session_id", "next_request_id")
    world.write(
        DAY,
        [
            row
            | {name: row[name] and f"{copy:02d}{row[name]}" for name in names}
            | {"event_ts": row["event_ts"] + timedelta(hours=copy)}
            for copy in range(5)
            for row in rows
        ],
    )
    # as in a large export: many row groups, and many parts
    pq.write_table(pq.read_table(part(world), partitioning=None), part(world), row_group_size=1_000)
    monkeypatch.setattr(export, "PART_ROWS", 250)
    usual = pa.default_memory_pool()
    pa.set_memory_pool(COUNTED)
    tracemalloc.start()
    try:
        data = trajectories.load(world.settings, DAY)
        most = tracemalloc.get_traced_memory()[1] + COUNTED.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    columns = [c for split in (data.train, data.test) for c in vars(split).values() if torch.is_tensor(c)]
    assert most < 0.5 * sum(column.nbytes for column in columns)


def test_a_set_that_the_disk_has_no_room_for_is_told(toy):
    world = toy(learner=MAPPED)
    world.log(30)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(MtfError, match=r"no room for [\d,]+ bytes .*learner.replay_capacity"):
            trajectories.load(world.settings, DAY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_day_that_is_written_again_while_it_is_read_is_told(toy, monkeypatch):
    world = toy()
    world.log(30)
    checked = window.checked

    def meanwhile(*arguments):
        rewrite(part(world), lambda rows: rows[::-1])
        return checked(*arguments)

    monkeypatch.setattr(window, "checked", meanwhile)
    with pytest.raises(MtfError, match=r"part-0.parquet was written again while it was read"):
        trajectories.load(world.settings, DAY)

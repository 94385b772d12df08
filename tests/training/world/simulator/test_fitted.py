"""The kuairand build, on fitted tables that the test writes itself."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.world.simulator.conftest import DAY, world_settings
from training.contract.errors import DataError
from training.contract.fusion import top
from training.contract.settings import Settings
from training.world.simulator import drivers
from training.world.simulator.constants import HEADS, TARGET_RATES
from training.world.simulator.references import Bench
from training.world.simulator.sessions import ALIVE, Sessions
from training.world.simulator.world import World

USERS, ITEMS, WIDTH = 500, 600, 4


def write_fit(folder: Path) -> None:
    """What the upstream model's export has to look like, see ``training/world/simulator/fitted.py``."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    degrees = np.array(["full_active", "high_active", "2_14_day_new", "UNKNOWN"], dtype=object)
    latents = {f"u_{j}": rng.normal(size=USERS).astype(np.float32) for j in range(WIDTH)}
    users = {
        "user_id": np.arange(USERS) * 7 + 3,
        "rows": rng.integers(1, 90, USERS),
        "user_active_degree": pa.array(rng.choice(degrees, USERS).tolist()),
        "is_lowactive_period": np.zeros(USERS, np.int64),
        "is_video_author": rng.integers(0, 2, USERS),
        **{
            name: rng.integers(0, 3_000, USERS)
            for name in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
        },
        **latents,
    }
    followed = [None if user < 5 else int(count) for user, count in enumerate(users["follow_user_num"])]
    users["follow_user_num"] = pa.array(followed, pa.int64())  # users without a profile
    pq.write_table(pa.table(users), folder / "users.parquet")
    duration = rng.integers(3_000, 300_000, ITEMS)
    duration[:20] = 0
    videos = {f"v_{j}": rng.normal(size=ITEMS).astype(np.float32) for j in range(WIDTH)}
    pq.write_table(
        pa.table({"item_id": np.arange(ITEMS) * 11 + 5, "duration_ms": duration, **videos}),
        folder / "videos.parquet",
    )
    heads = {
        head: {
            "intercept": -1.0,
            "user_weight": rng.normal(0, 0.2, WIDTH).tolist(),
            "item_weight": rng.normal(0, 0.4, WIDTH).tolist(),
            "interaction": rng.normal(0, 0.3, WIDTH).tolist(),
        }
        for head in HEADS
    }
    (folder / "heads.json").write_text(json.dumps(heads))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    data = tmp_path_factory.mktemp("fitted")
    write_fit(data / "models" / "upstream" / "world")
    return world_settings(data, build="kuairand", requests_per_day=400)


def test_world_of_fitted_users_and_videos(fitted: Settings) -> None:
    static = fitted.fusion.static_action
    seen = []
    record = drivers.run_day_inprocess(
        fitted,
        DAY,
        lambda states, _: np.repeat(static[None], len(states), axis=0),
        observe=lambda requests, states, actions, outcome: seen.append((requests, outcome)),
    )
    assert record["requests"] > 200
    requests = seen[0][0]
    assert {int(user) % 7 for user in requests.user_id} == {3}
    assert {int(item) % 11 for item in requests.item_ids.ravel()} == {5}
    unknown = [outcome.item_id[outcome.duration_ms == 0] for _, outcome in seen]
    assert set(np.concatenate(unknown)) <= set(np.arange(20) * 11 + 5)
    table = drivers.users_of(fitted, DAY)
    assert table["follow_user_num"].null_count <= 5
    assert table.num_rows == USERS and table.schema.field("user_active_degree").type == pa.string()


def test_rates_are_calibrated_in_this_build_too(fitted: Settings) -> None:
    world = drivers.open_world(fitted, DAY)
    bench = Bench(world, DAY, sessions=600, seed=2)
    sessions = Sessions(
        bench.scene, bench.user_row, bench.number, np.full(600, bench.scene.day_start_us), np.zeros(600)
    )
    weights = fitted.fusion.to_weights(fitted.fusion.static_action)
    rates, live = [], np.arange(600)
    while len(live):
        requests = sessions.requests(live)
        scores = fitted.fusion.score(requests.predictions, weights)
        outcome = sessions.respond_places(requests, top(scores, 6))
        rates.append(outcome.rates)
        live = live[outcome.ended == ALIVE]
    means = np.concatenate(rates).mean(axis=0)
    for place, head in enumerate(HEADS):
        assert means[place] == pytest.approx(TARGET_RATES[head], rel=0.4), head
    assert means[0] == pytest.approx(TARGET_RATES["click"], rel=0.05)
    assert means[1] == pytest.approx(TARGET_RATES["long_view"], rel=0.08)


def test_faults_of_the_fit_are_named(tmp_path: Path) -> None:
    settings = world_settings(tmp_path, build="kuairand")
    folder = settings.layout.upstream / "world"
    write_fit(folder)
    users = pq.read_table(folder / "users.parquet")

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message):
            World(settings)

    pq.write_table(users.drop_columns(["rows"]), folder / "users.parquet")
    refused("lacks the column rows")
    pq.write_table(users.drop_columns(["u_3"]), folder / "users.parquet")
    refused("users have 3 latents and videos 4")
    bad = users["u_0"].to_numpy().copy()
    bad[7] = np.nan
    pq.write_table(users.set_column(users.column_names.index("u_0"), "u_0", [bad]), folder / "users.parquet")
    refused("row 7 has a latent")
    pq.write_table(users, folder / "users.parquet")
    heads = json.loads((folder / "heads.json").read_text())
    (folder / "heads.json").write_text(json.dumps({**heads, "like": {"intercept": 0.0}}))
    refused("heads.json")
    (folder / "videos.parquet").unlink()
    refused("train it first")

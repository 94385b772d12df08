"""The real slice as a world to simulate: the multi-task model distilled into few numbers a user and item.

For every head h, with u the user's and v the item's latent numbers,

    link_h(u, i) = c_h + a_h·u + b_h·v + Σ_j w_hj u_j v_j                                    (U1)

where link is the logit of the calibrated probability, and the logarithm of the expected seconds for
play time. The page and the hour are held at the log's most frequent ones, counts of past days at
what they are after the last landed day.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from training.contract.errors import DataError
from training.contract.files import replaced_folder, write_json_atomic
from training.contract.layout import IMPRESSIONS, USERS
from training.contract.settings import Settings
from training.world.upstream.daily import model_before
from training.world.upstream.data import Block, LandedLog, count_columns, read_log
from training.world.upstream.model import UpstreamModel
from training.world.upstream.ple import one_thread

LATENTS = 12
PAIRS = 200_000  # random (user, item) pairs that the model is asked about
HELD_OUT = 20_000  # of them, to say how well eq. (U1) does
EPOCHS = 12
BATCH = 4_096
HIDDEN = 64


class BilinearStudent(nn.Module):
    """Latents from a user's and an item's features by a small network each, then eq. (U1)."""

    def __init__(self, user_width: int, item_width: int, heads: int) -> None:
        super().__init__()
        self.user = nn.Sequential(nn.Linear(user_width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, LATENTS))
        self.item = nn.Sequential(nn.Linear(item_width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, LATENTS))
        self.intercept = nn.Parameter(torch.zeros(heads))
        self.user_weight = nn.Parameter(torch.randn(heads, LATENTS) * LATENTS**-0.5)
        self.item_weight = nn.Parameter(torch.randn(heads, LATENTS) * LATENTS**-0.5)
        self.cross = nn.Parameter(torch.randn(heads, LATENTS) * 0.1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        u, v = self.user(users), self.item(items)
        return self.intercept + u @ self.user_weight.T + v @ self.item_weight.T + (u * v) @ self.cross.T


def export_world(settings: Settings, folder: Path) -> dict[str, Any]:
    """Write ``users.parquet``, ``videos.parquet`` and ``heads.json`` to ``<upstream>/world``.

    - users: user_id, the profile columns of the settings, ``rows`` (impressions), ``u_0`` … ``u_11``;
    - videos: item_id, ``duration_ms`` (0: unknown), ``rows``, ``v_0`` … ``v_11``;
    - heads: per head ``link`` ("logit" or "log"), ``intercept`` c, ``user_weight`` a, ``item_weight`` b
      and ``interaction`` w.

    Latents have mean 0 and deviation 1. The users and videos are those with a landed impression, the
    model is the one that predicted the last landed day. The record holds ``r2`` a head on pairs that
    the distillation did not see. Raises :class:`DataError` when there is no such model or no users.
    """
    log = read_log(settings, folder)
    model = model_before(settings, log, log.days[-1])
    users, items = _profiles(settings, log), _videos(settings, log)
    context = {name: log.rows[name].mode().iloc[0] for name in ("tab", "hour")}
    pairs = _Pairs(model, log, users["user_id"].to_numpy(), items, context)
    rng = np.random.default_rng(settings.seed)
    user, item = rng.integers(len(users), size=PAIRS), rng.integers(len(items), size=PAIRS)
    target = model.calibration.link(model.raw(pairs.features(user, item)))
    torch.manual_seed(settings.seed)
    user_x, item_x = _standard(pairs.user_inputs()), _standard(pairs.item_inputs())
    with one_thread():
        student, r2 = _distil(user_x, item_x, user, item, target)
    u, v, heads = _normalised(student, user_x, item_x, target)
    with replaced_folder(settings.layout.upstream / "world") as out:
        _write(out / "users.parquet", users, u, "u")
        _write(out / "videos.parquet", items, v, "v")
        links = {h: "log" if h == "play_time" else "logit" for h in log.heads}
        write_json_atomic(
            out / "heads.json",
            {head: {"link": links[head], **heads[i]} for i, head in enumerate(log.heads)},
        )
    return {
        "users": len(users),
        "videos": len(items),
        "latents": LATENTS,
        "model_trained_until": max(model.train_days),
        "context": context,
        "r2": dict(zip(log.heads, r2, strict=True)),
    }


def _profiles(settings: Settings, log: LandedLog) -> pd.DataFrame:
    """Landed profiles of the users with an impression, and how many they have."""
    files = sorted(settings.layout.table(USERS).glob("dt=*/part-*.parquet"))
    if not files:
        raise DataError(f"no landed users below {settings.layout.table(USERS)}")
    columns = [feature.column for feature in settings.state.profile]
    with duckdb.connect() as connection:
        connection.read_parquet([str(f) for f in files], union_by_name=True).create_view("landed")
        latest = connection.sql(
            "select distinct on (user_id) * from landed order by user_id, updated_ts desc"
        ).df()
    rows = log.rows.groupby("user_id").size().rename("rows").reset_index()
    return rows.merge(latest[["user_id", *columns]], on="user_id", how="left").sort_values(
        "user_id", ignore_index=True
    )


def _videos(settings: Settings, log: LandedLog) -> pd.DataFrame:
    files = [str(f) for f in settings.layout.table(IMPRESSIONS).glob("dt=*/part-*.parquet")]
    with duckdb.connect() as connection:
        connection.read_parquet(files, union_by_name=True).create_view("landed")
        return connection.sql(
            "select item_id, max(duration_ms) as duration_ms, count(*) as rows from landed "
            "group by item_id order by item_id"
        ).df()


class _Pairs:
    """Features of any (user, item) pair on the day after the last landed one."""

    def __init__(
        self,
        model: UpstreamModel,
        log: LandedLog,
        users: np.ndarray,
        items: pd.DataFrame,
        context: Mapping[str, Any],
    ) -> None:
        self.model, self.context = model, context
        item_ids = items["item_id"].to_numpy()
        user_rows = pd.Index(log.users["user_id"][:-1]).get_indexer(users)
        item_rows = pd.Index(log.items["video_id"][:-1]).get_indexer(item_ids)
        table = log.items.iloc[item_rows]
        self.users = model.users.encode(log.users).take(user_rows)
        self.items = model.items.encode(log.items).take(item_rows)
        seconds = items["duration_ms"].to_numpy() / 1000.0
        tomorrow = pd.Timestamp(log.days[-1]) + pd.Timedelta(days=1)
        age = (tomorrow - table["upload_dt"]).dt.days.clip(lower=0).to_numpy(np.float64)
        self.user_counts = _latest(log, "user", users)
        self.item_context = {
            "log_duration": np.where(seconds > 0, np.log1p(seconds), np.nan),
            "log_age": np.log1p(age),
            **_latest(log, "item", item_ids),
            **_latest(log, "author", table["author_id"]),
        }

    def features(self, user: np.ndarray, item: np.ndarray) -> Block:
        return Block.join([self.users.take(user), self.items.take(item), self._context(user, item)])

    def _context(self, user: np.ndarray, item: np.ndarray) -> Block:
        frame = pd.DataFrame(
            {
                **{name: np.full(len(user), value, dtype=object) for name, value in self.context.items()},
                **{name: values[user] for name, values in self.user_counts.items()},
                **{name: values[item] for name, values in self.item_context.items()},
            }
        )
        return self.model.context.encode(frame)

    def user_inputs(self) -> np.ndarray:
        """[users, width]: the model's embeddings of the profile, its numbers and the counts."""
        n = len(self.users.numbers)
        context = self._context(np.arange(n), np.zeros(n, dtype=int)).numbers
        return np.concatenate([self._embedded(self.users, 0), self.users.numbers, context], axis=1)

    def item_inputs(self) -> np.ndarray:
        n = len(self.items.numbers)
        context = self._context(np.zeros(n, dtype=int), np.arange(n)).numbers
        first = self.users.categories.shape[1]
        return np.concatenate([self._embedded(self.items, first), self.items.numbers, context], axis=1)

    def _embedded(self, block: Block, first: int) -> np.ndarray:
        with torch.no_grad():
            parts = [
                self.model.network.embeddings[first + i](torch.from_numpy(block.categories[:, i])).numpy()
                for i in range(block.categories.shape[1])
            ]
        return np.concatenate(parts, axis=1)


def _latest(log: LandedLog, entity: str, keys: Any) -> dict[str, np.ndarray]:
    columns = count_columns(entity, log.heads)
    found = log.latest[entity].set_index("key")[columns].reindex(pd.Index(keys)).fillna(0.0)
    return {name: found[name].to_numpy(np.float64) for name in columns}


def _standard(inputs: np.ndarray) -> Tensor:
    scale = inputs.std(axis=0)
    kept = scale > 1e-9
    return torch.from_numpy(((inputs - inputs.mean(axis=0))[:, kept] / scale[kept]).astype(np.float32))


def _distil(
    user_x: Tensor, item_x: Tensor, user: np.ndarray, item: np.ndarray, target: np.ndarray
) -> tuple[BilinearStudent, list[float]]:
    """Least squares in units of each head's own spread; R² a head on the held-out pairs."""
    mean, scale = target.mean(axis=0), np.maximum(target.std(axis=0), 1e-9)
    wanted = torch.from_numpy(((target - mean) / scale).astype(np.float32))
    student = BilinearStudent(user_x.shape[1], item_x.shape[1], target.shape[1])
    optimiser = torch.optim.Adam(student.parameters(), lr=3e-3)
    train = len(target) - HELD_OUT
    steps = EPOCHS * -(-train // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    user_at, item_at = torch.from_numpy(user), torch.from_numpy(item)
    for _ in range(EPOCHS):
        for rows in torch.randperm(train).split(BATCH):
            out = student(user_x[user_at[rows]], item_x[item_at[rows]])
            loss = ((out - wanted[rows]) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        out = student(user_x[user_at[train:]], item_x[item_at[train:]])
    left = ((out - wanted[train:]) ** 2).mean(dim=0)
    return student, [float(x) for x in 1.0 - left / wanted[train:].var(dim=0)]


def _normalised(
    student: BilinearStudent, user_x: Tensor, item_x: Tensor, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Latents of mean 0 and deviation 1, and eq. (U1)'s numbers for them in the target's own unit."""
    mean, scale = target.mean(axis=0), np.maximum(target.std(axis=0), 1e-9)[:, None]
    with torch.no_grad():
        u, v = student.user(user_x).double().numpy(), student.item(item_x).double().numpy()
    c = student.intercept.detach().double().numpy()
    a, b, w = (p.detach().double().numpy() for p in (student.user_weight, student.item_weight, student.cross))
    u_mean, u_scale = u.mean(axis=0), np.maximum(u.std(axis=0), 1e-9)
    v_mean, v_scale = v.mean(axis=0), np.maximum(v.std(axis=0), 1e-9)
    intercept = mean + scale[:, 0] * (c + a @ u_mean + b @ v_mean + w @ (u_mean * v_mean))
    user = scale * (a + w * v_mean) * u_scale
    item = scale * (b + w * u_mean) * v_scale
    cross = scale * w * u_scale * v_scale
    heads = [
        {
            "intercept": float(intercept[h]),
            "user_weight": user[h].tolist(),
            "item_weight": item[h].tolist(),
            "interaction": cross[h].tolist(),
        }
        for h in range(len(c))
    ]
    return (u - u_mean) / u_scale, (v - v_mean) / v_scale, heads


def _write(path: Path, frame: pd.DataFrame, latents: np.ndarray, prefix: str) -> None:
    numbered = pd.DataFrame(latents, columns=[f"{prefix}_{j}" for j in range(latents.shape[1])])
    pd.concat([frame, numbered], axis=1).to_parquet(path, index=False)

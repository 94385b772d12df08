"""The ``kuairand`` build: users, videos and response fitted to real logs by ``training.world.upstream``.

Interface: the folder ``models/upstream/world`` below the data folder holds

``users.parquet``    one row per user: ``user_id`` int64, ``rows`` (how many log rows they have), the profile
                     columns of the users table under KuaiRand's names (null where unknown), and their latents
                     ``u_0`` … ``u_{m-1}``
``videos.parquet``   one row per video: ``item_id`` int64, ``duration_ms`` int64 (0: unknown), ``v_0`` …
                     ``v_{m-1}``, and optionally ``rows`` (popularity; without it all are alike)
``heads.json``       ``{head: {"intercept": c, "user_weight": [m], "item_weight": [m], "interaction": [m]}}``
                     for the eight heads of :data:`training.world.simulator.constants.HEADS`

and means, with ⟨·⟩ over j, the rank-m form

    logit P(head | u, i) = c + a·u + b·v + Σ_j w_j u_j v_j                                      (W1)

where for ``play_time`` the left side is the natural logarithm of the expected seconds played. The world
adds its own kinds of users, moves the intercepts so that static weights meet the real rates, and keeps
everything else (satisfaction, attention, prediction noise) as in the synthetic build.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.cluster.vq import kmeans2

from training.contract.errors import DataError
from training.contract.settings import Settings
from training.world.simulator.constants import HEADS, WorldConstants
from training.world.simulator.population import BilinearResponse, Population, check_sizes, draw_kinds


def load_fitted(settings: Settings, constants: WorldConstants, seed: int) -> Population:
    """Read the folder described above.

    ``world.users`` and ``world.items`` do not apply: all fitted users and videos take part. Raises
    :class:`DataError` naming the file and what it lacks.
    """
    folder = settings.layout.upstream / "world"
    users, videos = _table(folder / "users.parquet"), _table(folder / "videos.parquet")
    user, item = _latents(users, "u", folder), _latents(videos, "v", folder)
    if user.shape[1] != item.shape[1]:
        raise DataError(f"{folder}: users have {user.shape[1]} latents and videos {item.shape[1]}")
    response = _response(folder / "heads.json", user.shape[1])
    for name in ("user_id", "rows"):
        if name not in users.column_names:
            raise DataError(f"{folder / 'users.parquet'} lacks the column {name}")
    for name in ("item_id", "duration_ms"):
        if name not in videos.column_names:
            raise DataError(f"{folder / 'videos.parquet'} lacks the column {name}")
    check_sizes(settings, len(item))

    rng = np.random.default_rng([seed, 1])
    own = {"user_id", "rows", *(name for name in users.column_names if name.startswith("u_"))}
    profile = {name: _values(users[name]) for name in users.column_names if name not in own}
    duration = videos["duration_ms"].to_numpy().astype(np.int64)
    known = duration > 0
    typical = int(np.median(duration[known])) if known.any() else int(constants.duration_median_s * 1000)
    popularity = videos["rows"].to_numpy() if "rows" in videos.column_names else np.ones(len(item))
    count = min(constants.topics, len(item))
    spread = item.std(axis=0)
    _, topic = kmeans2(item / np.where(spread > 0, spread, 1.0), count, minit="++", seed=rng)
    topic = np.unique(topic, return_inverse=True)[1]
    return Population(
        user_id=users["user_id"].to_numpy().astype(np.int64),
        profile=profile,
        kind=draw_kinds(profile, constants, rng),
        activity=_activity(users["rows"].to_numpy(), constants, rng),
        user=user,
        user_drift=rng.standard_normal(user.shape) * user.std(axis=0) * 0.5,
        item_id=videos["item_id"].to_numpy().astype(np.int64),
        duration_ms=np.where(known, duration, typical),
        duration_known=known,
        item=item,
        topic=topic,
        popularity=np.sqrt(np.maximum(popularity, 1).astype(np.float64)),
        response=response,
    )


def _activity(rows: np.ndarray, constants: WorldConstants, rng: np.random.Generator) -> np.ndarray:
    """Visit probabilities with the fitted distribution, in the order of the users' real activity."""
    order = np.lexsort((rng.random(len(rows)), rows))
    activity = np.empty(len(rows))
    activity[order] = np.sort(rng.beta(*constants.activity, len(rows)))
    return np.clip(activity, 0.005, 0.97)


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"cannot read {path}: {error}. The kuairand world is fitted by the upstream model: train it first"
        ) from error


def _values(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.array(column.to_pylist(), dtype=object)
    return column.to_numpy()


def _latents(table: pa.Table, letter: str, folder: Path) -> np.ndarray:
    width = sum(name.startswith(f"{letter}_") and name[2:].isdigit() for name in table.column_names)
    if not width:
        raise DataError(f"{folder}: no latent columns {letter}_0, {letter}_1, …")
    try:
        latents = np.column_stack([table[f"{letter}_{j}"].to_numpy() for j in range(width)])
    except KeyError as error:
        raise DataError(f"{folder}: latents must be numbered without gaps: {error}") from error
    if not np.isfinite(latents).all():
        row = int(np.argmin(np.isfinite(latents).all(axis=1)))
        raise DataError(f"{folder}: row {row} has a latent {letter}_* that is not a number")
    return latents.astype(np.float64)


def _response(path: Path, width: int) -> BilinearResponse:
    try:
        heads = json.loads(path.read_text())
        intercept = np.array([float(heads[head]["intercept"]) for head in HEADS])
        weights = [
            np.array([heads[head][part] for head in HEADS], dtype=np.float64)
            for part in ("user_weight", "item_weight", "interaction")
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {path}: {error!r}") from error
    for part in weights:
        if part.shape != (len(HEADS), width):
            raise DataError(f"{path}: weights have shape {part.shape}, expected {(len(HEADS), width)}")
    return BilinearResponse(intercept, *weights)

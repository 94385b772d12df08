"""Predictions for every landed day, each from a model fitted on the days before it.

One fit a day, from scratch, on all earlier days (an expanding window, of which the newest
:data:`~training.world.upstream.model.MAXIMUM_ROWS` rows are used): no prediction has seen its own day or a
later one. Days before enough rows have gathered, the first one always, keep null predictions.
"""

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import spearmanr

from training.contract.errors import DataError
from training.contract.files import write_json_atomic, write_text_atomic
from training.contract.settings import Settings
from training.ingest.predictions import with_predictions
from training.world.upstream import measures
from training.world.upstream.data import PLAY_TIME, LandedLog, read_log
from training.world.upstream.model import MINIMUM_ROWS, UpstreamModel, fit_log, labels


def predict_days(settings: Settings, folder: Path) -> dict[str, Any]:
    """Fill the ``p_<head>`` columns of every landed day, and land the days again.

    The record, also written to ``evaluation.json`` beside the models, has per day ``train_rows`` and either
    ``null_because`` or ``changed`` (whether landing changed the day) with
    ``{"test_day", "train_days", "rows", "auc": {head: {"value", "lower", "upper", "positives"}},
    "calibration": {head: {"predicted", "observed", "ratio", "ece"}}, "play_time": {"spearman"}}``.
    Running it again with the same log changes nothing. Raises :class:`DataError` for a missing table;
    ``folder`` holds KuaiRand's CSVs.
    """
    log = read_log(settings, folder)
    record: dict[str, Any] = {"heads": list(log.heads), "days": {}}
    without = [head.name for head in settings.heads if head.name not in log.heads]
    record["heads_without_signal"] = without
    for day in log.days:
        train_rows = int((log.rows["day"] < day).sum())
        if train_rows < MINIMUM_ROWS:
            record["days"][day.isoformat()] = {
                "train_rows": train_rows,
                "null_because": f"{train_rows} impressions before it, fewer than {MINIMUM_ROWS}",
            }
            continue
        model = model_before(settings, log, day)
        table = _predictions(model, log, day)
        note = with_predictions(settings, day, table)
        predicted = np.stack([table[f"p_{head}"].to_numpy() for head in log.heads], axis=1)
        record["days"][day.isoformat()] = {
            "train_rows": train_rows,
            "changed": note["changed"],
            **_judged(log, day, model, predicted),
        }
    write_json_atomic(settings.layout.upstream / "evaluation.json", record)
    return record


def model_before(settings: Settings, log: LandedLog, day: date) -> UpstreamModel:
    """The model of all days before ``day``; the kept one when it was fitted on the same inputs."""
    train_days = [d for d in log.days if d < day]
    if not train_days:
        raise DataError(f"{day} is the first landed day: there is no past to train on")
    folder = settings.layout.upstream / f"dt={day.isoformat()}"
    digest = _digest(settings, log, day)
    note = folder / "inputs.sha256"
    if note.exists() and note.read_text() == digest:
        return UpstreamModel.load(folder)
    note.unlink(missing_ok=True)
    model = fit_log(settings, log, train_days)
    model.save(folder)
    write_text_atomic(note, digest)  # last: a kill before it makes the next run fit again
    return model


def _digest(settings: Settings, log: LandedLog, day: date) -> str:
    """SHA-256 of all that a fit before ``day`` depends on, but for the code."""
    digest = hashlib.sha256()
    meaning = {
        "upstream": settings.upstream.model_dump(),
        "seed": settings.seed,
        "heads": log.heads,
        "cap": settings.reward.play_time_cap_s,
    }
    digest.update(json.dumps(meaning, sort_keys=True).encode())
    for frame in (log.rows[log.rows["day"] < day].drop(columns="day"), log.users, log.items):
        digest.update(pd.util.hash_pandas_object(frame.convert_dtypes()).to_numpy().tobytes())
    return digest.hexdigest()


def _predictions(model: UpstreamModel, log: LandedLog, day: date) -> pa.Table:
    index = _rows_of(log, day)
    predicted = model.predict(log, index).astype(np.float32)
    rows = log.rows.iloc[index]
    return pa.table(
        {
            "request_id": pa.array(rows["request_id"], pa.string()),
            "item_id": pa.array(rows["item_id"], pa.int64()),
            **{f"p_{head}": predicted[:, i] for i, head in enumerate(log.heads)},
        }
    )


def _judged(log: LandedLog, day: date, model: UpstreamModel, predicted: np.ndarray) -> dict[str, Any]:
    y = labels(log, _rows_of(log, day))
    record: dict[str, Any] = {
        "test_day": day.isoformat(),
        "train_days": list(model.train_days),
        "rows": len(y),
        "auc": {},
        "calibration": {},
    }
    for i, head in enumerate(log.heads):
        record["calibration"][head] = measures.calibration(y[:, i], predicted[:, i])
        if head == PLAY_TIME:
            varied = np.ptp(y[:, i]) > 0 and np.ptp(predicted[:, i]) > 0
            rank = spearmanr(y[:, i], predicted[:, i]).statistic if varied else None
            record[PLAY_TIME] = {"spearman": None if rank is None else float(rank)}
        else:
            record["auc"][head] = measures.auc(y[:, i], predicted[:, i])
    return record


def _rows_of(log: LandedLog, day: date) -> np.ndarray:
    return np.flatnonzero((log.rows["day"] == day).to_numpy())

"""The reference upstream model: features, PLE and calibration, fitted on past days, kept in two files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional

from training.contract.errors import DataError
from training.contract.files import read_json, write_atomic, write_json_atomic
from training.contract.settings import Settings, UpstreamSettings
from training.world.upstream.calibration import Calibration
from training.world.upstream.data import (
    ENTITIES,
    IGNORED,
    LOGARITHMIC,
    PLAY_TIME,
    Block,
    Encoder,
    LandedLog,
    context_columns,
    count_columns,
)
from training.world.upstream.ple import PLE, one_thread

MINIMUM_ROWS = 5_000  # fewer past impressions teach nothing worth ranking by
MAXIMUM_ROWS = 2_000_000  # the newest are kept; a day's fit then takes a bounded time
MINIMUM_STEPS = 75  # gradient steps: a log of few days is walked more often than settings.epochs
WEIGHT_DECAY = 0.05
PREDICT_BATCH = 16_384


@dataclass(frozen=True)
class UpstreamModel:
    """``users``, ``items`` and ``context`` encode the three blocks of a row's features."""

    heads: tuple[str, ...]
    settings: UpstreamSettings
    users: Encoder
    items: Encoder
    context: Encoder
    calibration: Calibration
    network: PLE
    train_days: tuple[str, ...]

    def raw(self, features: Block) -> np.ndarray:
        """Uncalibrated outputs float64[n, heads]: logits, and log(1 + seconds) for play time."""
        self.network.eval()
        outputs = []
        with torch.no_grad(), one_thread():
            for start in range(0, len(features.numbers), PREDICT_BATCH):
                part = slice(start, start + PREDICT_BATCH)
                outputs.append(
                    self.network(
                        torch.from_numpy(features.categories[part]), torch.from_numpy(features.numbers[part])
                    ).numpy()
                )
        return np.concatenate(outputs).astype(np.float64)

    def features(self, log: LandedLog, index: np.ndarray) -> Block:
        """The features of the log's rows ``index`` (positions in ``log.rows``)."""
        rows = log.rows.iloc[index]
        return Block.join(
            [
                self.users.encode(log.users).take(log.user_row[index]),
                self.items.encode(log.items).take(log.item_row[index]),
                self.context.encode(rows),
            ]
        )

    def predict(self, log: LandedLog, index: np.ndarray) -> np.ndarray:
        """Calibrated predictions float64[n, heads]: probabilities, and expected seconds."""
        return self.calibration.apply(self.raw(self.features(log, index)))

    def save(self, folder: Path) -> None:
        """``model.safetensors`` and ``model.json`` in ``folder``; nothing in them is executed."""
        tensors = {k: v.contiguous() for k, v in sorted(self.network.state_dict().items())}
        write_atomic(folder / "model.safetensors", lambda temporary: save_file(tensors, str(temporary)))
        header = {
            "heads": self.heads,
            "settings": self.settings.model_dump(),
            "users": self.users.to_plain(),
            "items": self.items.to_plain(),
            "context": self.context.to_plain(),
            "calibration": asdict(self.calibration),
            "train_days": self.train_days,
        }
        write_json_atomic(folder / "model.json", header)

    @classmethod
    def load(cls, folder: Path) -> "UpstreamModel":
        """Raises :class:`DataError` when the folder holds no whole model."""
        try:
            header = read_json(folder / "model.json")
            tensors = load_file(folder / "model.safetensors")
            encoders = [Encoder.of_plain(header[name]) for name in ("users", "items", "context")]
            settings = UpstreamSettings(**header["settings"])
            heads = tuple(header["heads"])
            network = _network(settings, encoders, len(heads))
            network.load_state_dict(tensors)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{folder} holds no upstream model: {error}") from error
        users, items, context = encoders
        return cls(
            heads,
            settings,
            users,
            items,
            context,
            calibration=Calibration(**{k: tuple(v) for k, v in header["calibration"].items()}),
            network=network,
            train_days=tuple(header["train_days"]),
        )


def fit_log(settings: Settings, log: LandedLog, train_days: Sequence[date]) -> UpstreamModel:
    """Train on ``train_days`` of the log and calibrate on their last share by time.

    The same rows, settings and days give the same model. Raises :class:`DataError` when the days
    hold fewer than :data:`MINIMUM_ROWS` rows.
    """
    index = np.flatnonzero(log.rows["day"].isin(list(train_days)).to_numpy())[-MAXIMUM_ROWS:]
    if len(index) < MINIMUM_ROWS:
        raise DataError(
            f"{len(index)} impressions in the {len(train_days)} days to train the multi-task model on, "
            f"expected at least {MINIMUM_ROWS}"
        )
    upstream = settings.upstream
    cut = int(len(index) * (1.0 - upstream.calibration_share))
    train, held_out = index[:cut], index[cut:]
    encoders = _encoders(log, train)
    torch.manual_seed(settings.seed + max(train_days).toordinal())
    network = _network(upstream, encoders, len(log.heads))
    users, items, context = encoders
    untrained = UpstreamModel(
        log.heads,
        upstream,
        users,
        items,
        context,
        calibration=Calibration.identity(log.heads),
        network=network,
        train_days=tuple(day.isoformat() for day in sorted(train_days)),
    )
    y = labels(log, train)
    with one_thread():
        _optimise(upstream, network, untrained.features(log, train), y, log.heads)
    scores = untrained.raw(untrained.features(log, held_out))
    calibration = Calibration.learn(log.heads, scores, labels(log, held_out), y.mean(axis=0))
    return UpstreamModel(**{**untrained.__dict__, "calibration": calibration})


def labels(log: LandedLog, index: np.ndarray) -> np.ndarray:
    """float64[n, heads]: 0 or 1, and capped seconds for play time."""
    return log.rows[[f"y_{head}" for head in log.heads]].to_numpy(np.float64)[index]


def _encoders(log: LandedLog, train: np.ndarray) -> list[Encoder]:
    """Profiles and videos are known before the log; the context's scales are the training rows'."""
    encoders = []
    for table in (log.users, log.items):
        names = [name for name in table.columns if name not in IGNORED and not name.endswith("_range")]
        numbers = [name for name in names if name in LOGARITHMIC]
        categories = [name for name in names if name not in LOGARITHMIC]
        encoders.append(Encoder.learn(table[:-1], categories, numbers))
    categories, numbers = context_columns()
    counts = [column for entity in ENTITIES for column in count_columns(entity, log.heads)]
    encoders.append(Encoder.learn(log.rows.iloc[train], categories, [*numbers, *counts]))
    return encoders


def _network(settings: UpstreamSettings, encoders: Sequence[Encoder], heads: int) -> PLE:
    return PLE(
        [size for encoder in encoders for size in encoder.cardinalities],
        sum(len(encoder.scales) for encoder in encoders),
        heads,
        embedding=settings.embedding,
        experts=settings.experts,
        layers=settings.layers,
        hidden=settings.hidden,
        dropout=settings.dropout,
    )


def _optimise(
    settings: UpstreamSettings, network: PLE, features: Block, y: np.ndarray, heads: Sequence[str]
) -> None:
    """Adam with a rate that falls to zero along a cosine; towers start at each head's base rate."""
    binary = torch.tensor([head != PLAY_TIME for head in heads])
    base = np.clip(y.mean(axis=0), 1e-5, 1.0 - 1e-5)
    start = np.where(binary.numpy(), np.log(base / (1.0 - base)), np.log1p(y).mean(axis=0))
    with torch.no_grad():
        network.tower_bias.copy_(torch.from_numpy(start)[:, None, None])
    target = torch.from_numpy(np.where(binary.numpy(), y, np.log1p(y)).astype(np.float32))
    categories, numbers = torch.from_numpy(features.categories), torch.from_numpy(features.numbers)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY)
    batches = -(-len(target) // settings.batch_size)
    epochs = max(settings.epochs, -(-MINIMUM_STEPS // batches))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * batches)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(target)).split(settings.batch_size):
            out, wanted = network(categories[rows], numbers[rows]), target[rows]
            cross_entropy = functional.binary_cross_entropy_with_logits(
                out[:, binary], wanted[:, binary], reduction="none"
            )
            squared = 0.5 * (out[:, ~binary] - wanted[:, ~binary]) ** 2
            loss = (cross_entropy.sum(dim=1) + squared.sum(dim=1)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()

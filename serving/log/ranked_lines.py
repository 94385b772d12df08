"""What did a request rank, and with which predictions? Read back from its line in the log of decisions."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
import structlog

from serving.log.day_files import Place, read_line
from training.contract.log import Id
from training.contract.session import Shown

_log = structlog.get_logger("mtf.serving.ranked_lines")


class RankedLine(NamedTuple):
    """``items`` [n] best first, their ``predictions`` float64[n, heads], and how many of them, from the top,
    are taken as shown where no feedback says which."""

    items: list[Id]
    predictions: np.ndarray
    default: int

    def top(self, count: int | None) -> list[Id]:
        """The first items; None: those that are taken as shown."""
        return self.items[: self.default if count is None else count]

    def shown(self, said: Collection[Id] | None, events: Collection[Id]) -> Shown:
        """What was shown, by what feedback ``said`` of it (None: nothing) and by the items of its events."""
        seen = {*(self.top(None) if said is None else said), *events}
        places = [place for place, item in enumerate(self.items) if item in seen]
        return Shown(len(places), self.predictions[places].sum(axis=0).tolist())


class RankedLines:
    """Lines in a folder of day files; ``heads`` are those of the settings, in their order. For any thread."""

    def __init__(self, folder: Path, heads: Sequence[str]) -> None:
        self._folder, self._heads = folder, heads

    def read(self, place: Place) -> RankedLine | None:
        """None where the line is gone, which is logged, or was ranked by other heads than these."""
        try:
            line = orjson.loads(read_line(self._folder, place))
        except (OSError, ValueError) as error:
            _log.warning("what a request ranked is not known any more", reason=str(error))
            return None
        items, scores = line["items"], line["scores"]
        if not set(self._heads) >= scores.keys():
            return None
        none = [0.0] * len(items)
        columns = [scores.get(head) or none for head in self._heads]
        return RankedLine(items, np.array(columns).T, line["shown"])

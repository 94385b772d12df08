"""How old the features in the online store are."""

from datetime import datetime, timedelta

import structlog

from training.contract.files import read_json
from training.contract.settings import Settings

_log = structlog.get_logger("mtf.serving.features_age")


class FeaturesAge:
    """Follows the note that a materialisation leaves. Before the first one nothing is stale: there are
    no features yet, and a state of zeros says so."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.layout.materialised
        self._limit = timedelta(hours=settings.serving.max_features_age_hours)
        self._until: datetime | None = None
        self._told = False

    @property
    def until(self) -> datetime | None:
        return self._until

    def look(self) -> None:
        """Read the note again. A note that cannot be read leaves what was known."""
        try:
            self._until = datetime.fromisoformat(read_json(self._path)["until"])
            self._told = False
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not self._told:
                self._told = True
                _log.error("age of the features not known", file=str(self._path), reason=str(error))

    def stale(self, event_ts: datetime) -> bool:
        """Whether they are too old for a request at ``event_ts`` (timezone-aware)."""
        return self._until is not None and event_ts - self._until > self._limit

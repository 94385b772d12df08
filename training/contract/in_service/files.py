"""What is in service, in files below the data folder: of one machine, or of a shared file system."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.contract.files import locked, write_text_atomic
from training.contract.in_service.value import PARTS, InService
from training.contract.settings import Settings


class Files:
    """Every part is a file, and a lock keeps changes apart."""

    def __init__(self, settings: Settings) -> None:
        self._settings, layout = settings, settings.layout
        self._paths: dict[str, Path] = {part: getattr(layout, part) for part in PARTS}
        self._history, self._lock = layout.history, layout.serving / "changing.lock"

    def read(self) -> InService:
        """Each part is read from its file when it is asked for."""
        return InService(self._settings, self._text, self._lines, lambda part: str(self._paths[part]))

    @contextmanager
    def held(self) -> Iterator[None]:
        with locked(self._lock):
            yield

    def write(self, row: InService, fence: int | None) -> None:
        """Call it where the lock is held: what is killed half-way has changed nothing that serves, and is
        done again. The lock is the fence, too: whoever is paused with it keeps it."""
        if row.added:
            write_text_atomic(self._history, "\n".join(row.lines) + "\n")
        for part in PARTS:
            if part not in row.changes:
                continue
            text = row.changes[part]
            if text is None:
                self._paths[part].unlink(missing_ok=True)
            else:
                write_text_atomic(self._paths[part], text)

    def _text(self, part: str) -> str | None:
        try:
            return self._paths[part].read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _lines(self) -> list[str]:
        try:
            return self._history.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []

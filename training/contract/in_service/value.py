"""What is in service, as one value: the pointers of champion and challenger, canary, shares, history."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from training.contract.errors import MtfError, PolicyError, SettingsError
from training.contract.pointer import PolicyPointer
from training.contract.records import now
from training.contract.settings import Settings, ShareSettings, check_shares

Event = dict[str, Any]
# in the order in which files are written: a canary's next step has its shares before it counts, and what is
# killed half-way is done again, because a challenger goes only after it has become the champion
PARTS = ("shares", "champion", "challenger", "canary")


class InService:
    """As it was read, with the changes made to it since, which :func:`changing` writes as one.

    ``text`` and ``lines`` give the JSON of a part (None: there is none) and of each event; ``where`` names a
    part in an error. Each part raises for itself, so that a broken one leaves the others readable.
    ``version`` is raised by one with each change in Redis; in files, which a lock keeps, it is 0.
    """

    def __init__(
        self,
        settings: Settings,
        text: Callable[[str], str | None],
        lines: Callable[[], Sequence[str]],
        where: Callable[[str], str],
        version: int = 0,
    ) -> None:
        self.settings, self.version = settings, version
        self._text, self._lines, self._where = text, lines, where
        self.changes: dict[str, str | None] = {}
        self.added: list[str] = []

    @property
    def before(self) -> "InService":
        """As it was read."""
        return InService(self.settings, self._text, self._lines, self._where, self.version)

    def text(self, part: str) -> str | None:
        return self.changes[part] if part in self.changes else self._text(part)

    @property
    def lines(self) -> list[str]:
        return [*self._lines(), *self.added]

    @property
    def champion(self) -> PolicyPointer | None:
        """None before the first promotion. Raises :class:`PolicyError` when it is broken."""
        return self._pointer("champion")

    @champion.setter
    def champion(self, pointer: PolicyPointer | None) -> None:
        self._put("champion", None if pointer is None else asdict(pointer))

    @property
    def challenger(self) -> PolicyPointer | None:
        """Of the challenger arm and of the shadow; None when nothing is tried. Raises as the champion's."""
        return self._pointer("challenger")

    @challenger.setter
    def challenger(self, pointer: PolicyPointer | None) -> None:
        self._put("challenger", None if pointer is None else asdict(pointer))

    @property
    def canary(self) -> dict[str, Any] | None:
        """How far the challenger's canary is; None before it begins. Raises :class:`MtfError`."""
        text = self.text("canary")
        try:
            canary: dict[str, Any] | None = None if text is None else json.loads(text)
        except ValueError as error:
            raise MtfError(f"{self._where('canary')} is not JSON: {error}") from error
        return canary

    @canary.setter
    def canary(self, canary: Mapping[str, Any] | None) -> None:
        self._put("canary", canary)

    @property
    def shares(self) -> ShareSettings:
        """Those in force: the settings' until the first change. Raises :class:`SettingsError`."""
        text = self.text("shares")
        if text is None:
            return self.settings.serving.shares
        try:
            content = json.loads(text)
        except ValueError as error:
            raise SettingsError(f"{self._where('shares')}: {error}") from None
        return self._checked(content, self._where("shares"))

    def change_shares(self, changes: Mapping[str, float], reason: str) -> ShareSettings:
        """Set some shares and keep the others. Raises :class:`SettingsError`; nothing has changed then."""
        shares = self._checked({**self.shares.model_dump(), **changes}, "shares")
        self._put("shares", shares.model_dump())
        self.append({"action": "shares", "shares": shares.model_dump(), "reason": reason})
        return shares

    @property
    def history(self) -> list[Event]:
        """Promotions, rollbacks, shares: oldest first, with ``action``, ``ts``, ``reason`` at least."""
        return [json.loads(line) for line in self.lines]

    def append(self, event: Mapping[str, Any]) -> None:
        """Add an event, with its ``ts``."""
        self.added.append(json.dumps({"ts": now(), **event}, sort_keys=True))

    def _pointer(self, part: str) -> PolicyPointer | None:
        text = self.text(part)
        try:
            return None if text is None else PolicyPointer(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise PolicyError(f"{self._where(part)} is not a pointer to a policy: {error}") from error

    def _put(self, part: str, value: Mapping[str, Any] | None) -> None:
        text = None
        if value is not None:
            text = json.dumps(value, indent=2, sort_keys=True, default=str, allow_nan=False) + "\n"
        if text != self.text(part):
            self.changes[part] = text

    def _checked(self, content: Any, where: str) -> ShareSettings:
        try:
            shares = ShareSettings(**content)
            check_shares(shares, self.settings.serving.max_exploration)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
            raise SettingsError(f"{where}: {faults}") from None
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{where}: {error}") from None
        return shares

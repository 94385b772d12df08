"""What is an id of a user or an item in a body, and what is it from there on?

JSON's readers keep whole numbers up to 2^53, so an id may always come as the text of its digits, and is then
answered so. An int64 goes on as a number; every other id as text, an unsigned number by its digits.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from serving.http.requests import RequestError
from training.contract.settings import IdKind

MAXIMUM_TEXT = 200  # characters of an id that is text
_INT64, _UINT64 = 2**63, 2**64


class Ids:
    """The ids of one kind; ``setting`` is where they are told of."""

    def __init__(self, kind: IdKind, setting: str) -> None:
        self.kind, self._setting = kind, setting

    @property
    def type(self) -> Any:
        """What the declared types of a body take."""
        about = f"{self.kind} ({self._setting})"
        if self.kind == "string":
            return Annotated[str, Meta(min_length=1, max_length=MAXIMUM_TEXT, description=about)]
        limits, digits = {
            "int64": (Meta(ge=-_INT64, le=_INT64 - 1), "^(0|-?[1-9][0-9]{0,18})$"),
            "uint64": (Meta(ge=0), "^(0|[1-9][0-9]{0,19})$"),  # a limit above int64 is not to be had
        }[self.kind]
        either = Annotated[int, limits] | Annotated[str, Meta(pattern=digits)]
        return Annotated[either, Meta(description=f"{about}, or the text of its digits")]

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of an id in an answer."""
        text = {"type": "string"}
        if self.kind == "string":
            return text
        low, high = (-_INT64, _INT64 - 1) if self.kind == "int64" else (0, _UINT64 - 1)
        return {"anyOf": [{"type": "integer", "minimum": low, "maximum": high}, text]}

    def one(self, name: str, sent: int | str) -> Any:
        """As it goes on; ``name`` is its field. Raises :class:`RequestError` for too large a number."""
        if self.kind == "string":
            return sent
        number = int(sent)
        if number >= (_UINT64 if self.kind == "uint64" else _INT64) or number < -_INT64:
            raise RequestError(f"{name}: {sent} is no {self.kind} ({self._setting})")
        return number if self.kind == "int64" else str(number)

    def many(self, name: str, sent: Sequence[int | str]) -> np.ndarray:
        """int64[n], or text as object[n]."""
        kept = [self.one(f"{name}[{at}]", value) for at, value in enumerate(sent)]
        return np.array(kept, dtype=np.int64 if self.kind == "int64" else object)


def as_text(sent: Sequence[Any]) -> bool:
    """Whether ids came as text, and are to be answered so."""
    return any(isinstance(value, str) for value in sent)


def answered(items: np.ndarray, text: bool) -> Any:
    """Ids in the form in which they came: numbers, or ``text``."""
    if items.dtype == np.int64:
        return [str(item) for item in items.tolist()] if text else items
    return items.tolist() if text else [int(item) for item in items]


def logged(items: np.ndarray) -> Any:
    """Ids as the log has them."""
    return items if items.dtype == np.int64 else items.tolist()

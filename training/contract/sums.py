"""What adds up: sums over parts of a log, which who learns asks for and who has the data takes."""

from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar


class Sum(Protocol):
    def __add__(self, other: Self, /) -> Self: ...


S = TypeVar("S", bound=Sum)
T = TypeVar("T")


class AddUp(Protocol):
    """Takes sums, here or where the data are (:mod:`training.warehouse.sums`)."""

    def __call__(self, work: Callable[[T], S], items: Sequence[T], /) -> S:
        """The sum of ``work`` over ``items``, of which there is one at least."""
        ...

"""What the ids of users and items are."""

from typing import Literal

from pydantic import Field

from training.contract.settings.section import Section

IdKind = Literal["int64", "uint64", "string"]


class IdSettings(Section):
    """Ids that are not int64 are kept as text, everywhere: an unsigned one by its digits."""

    users: IdKind = Field(
        "int64", description="user_id: int64, uint64, or string (UUIDs, ids with leading zeros) (ours)"
    )
    items: IdKind = Field("int64", description="item_id, likewise (ours)")

    def kept(self, column: str) -> Literal["int64", "string"]:
        """The type that the lake keeps ``user_id`` or ``item_id`` in."""
        return "int64" if self.kind(column) == "int64" else "string"

    def kind(self, column: str) -> IdKind:
        return {"user_id": self.users, "item_id": self.items}[column]

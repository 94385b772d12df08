"""Whom features describe."""

from feast import Entity, ValueType

from training.contract.settings import Settings


def user(settings: Settings) -> Entity:
    """A person, by their id's type in the settings."""
    kinds = {"int64": ValueType.INT64, "string": ValueType.STRING}
    return Entity(
        name="user",
        join_keys=["user_id"],
        value_type=kinds[settings.ids.kept("user_id")],
        description="a person who is shown ranked lists",
    )

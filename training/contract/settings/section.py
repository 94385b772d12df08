"""What every section of the settings has in common: nothing unknown, nothing changed, no NaN."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")]


Share = Annotated[float, Field(ge=0.0, le=1.0)]


Positive = Annotated[float, Field(gt=0.0)]


def _named(value: Any) -> Any:
    """``""`` would be the folder that a command happens to run in, and no file system takes a NUL."""
    if isinstance(value, str | Path) and (not str(value).strip() or "\0" in str(value)):
        raise ValueError("is empty: name a folder" if "\0" not in str(value) else "holds a NUL: take it out")
    return value


def _of_home(path: Path) -> Path:
    """``~/x`` as a shell has it; a settings file is read by no shell."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: no such user's home: name the folder from / on") from error


def _no_file(folder: Path) -> Path:
    if os.path.isfile(folder):  # noqa: PTH113 -- False, too, where it cannot be looked at
        raise ValueError(f"{folder} is a file: name a folder")
    return folder


Place = Annotated[Path, BeforeValidator(_named), AfterValidator(_of_home)]

Folder = Annotated[Place, AfterValidator(_no_file)]


def repeated(names: Sequence[str]) -> list[str]:
    """Those that are there more than once, sorted."""
    return sorted({name for name in names if names.count(name) > 1})


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

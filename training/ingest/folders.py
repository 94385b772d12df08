"""A folder of deliveries on disk: which files are a day's, and what lies there that is not read.

Nothing is passed over: what cannot be listed, a link that leads nowhere, a pipe and a name that is none of
the folder's are refused by name. Links to files and folders are read as what they lead to.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path

from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS, TABLES
from training.ingest.columns_file import COLUMNS_FILE
from training.ingest.files import SUFFIXES, is_data, slips

_DELIVERY = re.compile(r"dt=\d{4}-\d{2}-\d{2}")
_HIDDEN = ("_", ".")
_YEARS = range(1970, 2200)


def table_files(folder: Path, table: str, day: date) -> list[Path]:
    """Every file below a delivery's folder that is not to be left out.

    Raises :class:`DataError` naming what is neither a folder nor a file, or cannot be listed.
    """
    place = folder / table / f"dt={day.isoformat()}"
    return [path for path in _all_files(place) if not _hidden(path, place)]


def delivered(folder: Path, table: str, day: date) -> tuple[list[Path], list[str]]:
    """The files to be read, and the names of those that would be if they were not hidden.

    Raises :class:`DataError` as :func:`table_files`, and naming a file that is none that is read.
    """
    place = folder / table / f"dt={day.isoformat()}"
    paths = table_files(folder, table, day)
    for path in paths:
        if not is_data(path):
            raise DataError(
                f"{path}: not a file that is read ({', '.join(SUFFIXES)}): write it as one of these, or let "
                "its name begin with _ to leave it out",
                breaks="readable",
            )
    hidden = [path for path in _all_files(place) if is_data(path) and _hidden(path, place)]
    return paths, sorted(str(path.relative_to(place)) for path in hidden)


def has_delivery(folder: Path, day: date) -> bool:
    """Whether a folder has impressions of the day."""
    return bool(table_files(folder, IMPRESSIONS, day))


def delivery_files(folder: Path, day: date) -> list[Path]:
    """All files of the delivery of ``day``, and ``columns.json`` where there is one.

    Of a table that cannot be listed, which its landing refuses, there are none.
    """
    found: list[Path] = []
    with suppress(OSError):
        found += [path for path in (folder / COLUMNS_FILE,) if path.exists()]
    for table in TABLES:
        with suppress(DataError):
            found += table_files(folder, table, day)
    return found


def delivered_days(folder: Path, table: str = IMPRESSIONS) -> list[date]:
    """Days of which a table has a folder, oldest first."""
    names = [path.name for path in _entries(folder / table)]
    return sorted(date.fromisoformat(name[3:]) for name in names if _is_delivery(name))


def refuse_strays(folder: Path) -> None:
    """Raise :class:`DataError` naming a folder or file beside the deliveries that is not read."""
    beside = [path.name for path in _entries(folder) if path.name not in (*TABLES, COLUMNS_FILE)]
    missing = [name for name in (*TABLES, COLUMNS_FILE) if not _there(folder / name)]
    near = {theirs: ours for ours, theirs in slips([*TABLES, COLUMNS_FILE], beside)}
    for theirs in sorted(beside, key=lambda name: name not in near):
        path, ours = folder / theirs, near.get(theirs)
        if ours in missing:
            raise DataError(f"{path}: is it {ours}? Then call it {folder / ours}", breaks="delivered")
        told = f", of which {ours} is almost its name" if ours else ""
        raise DataError(
            f"{path}: it is not read: expected {', '.join(TABLES)} and {COLUMNS_FILE}{told}: take it away, "
            "or let its name begin with _ to leave it out",
            breaks="delivered",
        )
    for table in TABLES:
        if _there(folder / table) and not _is_folder(folder / table):
            raise DataError(f"{folder / table}: {_what(folder / table)}, not a folder", breaks="delivered")
        for path in _entries(folder / table):
            if not (_is_folder(path) and _is_delivery(path.name)):
                told = "" if path.exists() else f": {_what(path)}"
                raise DataError(
                    f"{path}: not a delivery{told}: expected {folder / table / 'dt=2026-01-05'}, a folder a "
                    f"day, of {_YEARS[0]} to {_YEARS[-1]}",
                    breaks="delivered",
                )


def nothing(folder: Path, day: date) -> str:
    """What is said of a day without impressions."""
    there = [path.name for path in _entries(folder / IMPRESSIONS)]
    place = folder / IMPRESSIONS / f"dt={day.isoformat()}"
    found = f"; there are {there[0]} to {there[-1]}" if there else ""
    if not folder.is_dir():
        found = f"; there is no folder {folder}"
    return f"no file of {day}: expected {place}/ with {', '.join(SUFFIXES)} files{found}"


def _all_files(place: Path) -> list[Path]:
    """Files below a folder, through links, with the hidden ones."""
    return sorted(_below(place)) if _there(place) else []


def _below(folder: Path, above: tuple[Path, ...] = (), hidden: bool = False) -> Iterator[Path]:
    here = (*above, folder.resolve())
    for path in _listed(folder):
        left_out = hidden or path.name.startswith(_HIDDEN)
        try:
            if not _is_folder(path):
                yield _file(path)
            elif path.resolve() in here:
                raise DataError(f"{path}: a link to a folder that it is in: take it out", breaks="readable")
            else:
                yield from _below(path, here, left_out)
        except DataError:
            if not left_out:
                raise


def _file(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: {_what(path)}: bring a file, or take it out", breaks="readable")
    return path


def _what(path: Path) -> str:
    """What is there that is no folder and no file that could be read as one."""
    if path.is_symlink() and not path.exists():
        return f"it is a link to {path.readlink()}, which is not there"
    return "it is a file" if path.is_file() else "it is neither a file nor a folder"


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        message = f"{folder}: unreadable folder: {str(error.strerror).lower()}"
        raise DataError(message, breaks="readable") from error


def _there(path: Path) -> bool:
    """Whether there is anything of that name, be it a link to nothing."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataError(f"{path}: unreadable: {str(error.strerror).lower()}", breaks="readable") from error
    return True


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # of a folder whose names may be listed, and not looked up
        raise DataError(f"{path}: unreadable: {str(error.strerror).lower()}", breaks="readable") from error


def _hidden(path: Path, place: Path) -> bool:
    return any(part.startswith(_HIDDEN) for part in path.relative_to(place).parts)


def _entries(folder: Path) -> list[Path]:
    if not _is_folder(folder):
        return []
    return [path for path in _listed(folder) if not path.name.startswith(_HIDDEN)]


def _is_delivery(name: str) -> bool:
    try:
        return bool(_DELIVERY.fullmatch(name)) and date.fromisoformat(name[3:]).year in _YEARS
    except ValueError:
        return False

"""Of which release is a data folder? One file in it says so, written once all of it is of that form.

A folder without the file is of this release, unless what lies in it is older: then `mtf upgrade` carries it
over (:mod:`training.operations.upgrade`), and nothing else touches it.
"""

from collections.abc import Sequence

from training.contract.errors import MtfError
from training.contract.files import read_json, write_json_atomic
from training.contract.layout import IMPRESSIONS, Layout
from training.contract.log import LAKE_VERSION

# Raised when what lies in the folder has to be carried over for this code to go on with it.
FORM = 2


def refuse_other(layout: Layout) -> None:
    """Raise :class:`MtfError` in one line for a folder that is not of this release."""
    form = form_of(layout)
    if form < FORM:
        raise MtfError(
            f"the data folder {layout.root} is of an earlier release: `mtf upgrade` carries it over"
        )
    if form > FORM:
        raise MtfError(
            f"the data folder {layout.root} is of a later release (form {form}, and this one knows {FORM}): "
            "run the release that wrote it, or name another folder (data)"
        )


def form_of(layout: Layout) -> int:
    """The form of a data folder; of one that is not there or empty, this release's.

    Raises :class:`MtfError` when the file that says it cannot be read.
    """
    try:
        return int(read_json(layout.version)["form"])
    except FileNotFoundError:
        return 1 if _is_older(layout) else FORM
    except (ValueError, TypeError, KeyError) as error:
        raise MtfError(
            f"{layout.version} does not say of which form the folder is ({error}): restore a backup, or "
            f'write {{"form": {FORM}}} into it where you know that it is of this release'
        ) from error


def keep(layout: Layout) -> None:
    """Begin to write the folder: :func:`refuse_other`, and :func:`mark`."""
    refuse_other(layout)
    mark(layout)


def mark(layout: Layout) -> None:
    """Note that the folder is of this release's form."""
    if not layout.version.exists():
        note(layout, FORM)


def note(layout: Layout, form: int, carried: Sequence[str] = ()) -> None:
    """Write down of which form the folder is, and which parts of it are of the next one already."""
    write_json_atomic(layout.version, {"form": form} | ({"carried": list(carried)} if carried else {}))


def carried(layout: Layout) -> list[str]:
    """The parts that an upgrade, which did not end, has carried over."""
    return list(read_json(layout.version).get("carried", ())) if layout.version.exists() else []


def _is_older(layout: Layout) -> bool:
    """Whether the newest landed day was landed by an earlier release, of which nobody made a note."""
    days = layout.days(IMPRESSIONS)
    note = layout.partition(IMPRESSIONS, days[-1]) / "_landed.json" if days else None
    if note is None or not note.exists():
        return False
    return bool(read_json(note)["contract_version"] < LAKE_VERSION)

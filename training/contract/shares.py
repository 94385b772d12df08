"""The shares of the arms while the service runs: a small file that every worker follows.

The settings' ``serving.shares`` are what a data folder starts with. The first change (`mtf arms`, or a
canary's step) writes the file, which is in force from then on.
"""

from collections.abc import Mapping

from pydantic import ValidationError

from training.contract import history
from training.contract.errors import SettingsError
from training.contract.files import read_json, write_json_atomic
from training.contract.settings import Settings, ShareSettings, check_shares


def read_shares(settings: Settings) -> ShareSettings:
    """The shares in force. Raises :class:`SettingsError` naming what is wrong with the file."""
    path = settings.layout.shares
    try:
        content = read_json(path)
        shares = ShareSettings(**content)
        check_shares(shares, settings.serving.max_exploration)
    except FileNotFoundError:
        return settings.serving.shares
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
        raise SettingsError(f"{path}: {faults}") from None
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    return shares


def change_shares(settings: Settings, changes: Mapping[str, float], reason: str) -> ShareSettings:
    """Set some shares and keep the others; checked, written atomically, and kept in the history.

    Call it inside :func:`training.contract.history.changing`. Raises :class:`SettingsError` when the
    result cannot be in force; nothing has changed then.
    """
    try:
        shares = ShareSettings(**{**read_shares(settings).model_dump(), **changes})
        check_shares(shares, settings.serving.max_exploration)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
        raise SettingsError(f"shares: {faults}") from None
    except ValueError as error:
        raise SettingsError(f"shares: {error}") from None
    write_json_atomic(settings.layout.shares, shares.model_dump())
    history.append(settings.layout, {"action": "shares", "shares": shares.model_dump(), "reason": reason})
    return shares

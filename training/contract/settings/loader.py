"""Reading the settings: the file, the environment over it, and every fault with its place."""

import os
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from training.contract.errors import SettingsError
from training.contract.settings.lines import locate, refuse_repeated
from training.contract.settings.whole import ENV_PREFIX, Settings

SETTINGS_VARIABLE = "MTF_SETTINGS"
DEFAULT_FILE = "mtf.yaml"


def settings_path() -> Path:
    """``$MTF_SETTINGS``, else ``mtf.yaml`` in the working folder."""
    return Path(os.environ.get(SETTINGS_VARIABLE, DEFAULT_FILE)).resolve()


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings file and the environment; a relative ``data`` is beside the file.

    Raises :class:`SettingsError` that lists every fault with its file and line.
    """
    path = (path or settings_path()).resolve()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"cannot read the settings file {path}: {error.strerror}. "
            f"Write one with `mtf init`, or name yours in ${SETTINGS_VARIABLE}."
        ) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path}:1: expected a mapping of settings")
    refuse_repeated(node, path)
    _refuse_unknown_environment(os.environ)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(_explain(error, node, path)) from None
    if not settings.data.is_absolute():
        settings = settings.model_copy(update={"data": path.parent / settings.data})
    return settings


def _refuse_unknown_environment(environment: Mapping[str, str]) -> None:
    for name in sorted(environment):
        if not name.upper().startswith(ENV_PREFIX):
            continue
        section = name[len(ENV_PREFIX) :].split("__")[0].lower()
        if section not in Settings.model_fields:
            raise SettingsError(f"${name}: there is no setting {section!r}")


def _explain(error: ValidationError, node: yaml.Node | None, path: Path) -> str:
    lines = []
    faults = error.errors()
    for fault in faults:
        if any(
            len(f["loc"]) > len(fault["loc"]) and f["loc"][: len(fault["loc"])] == fault["loc"]
            for f in faults
        ):
            continue  # a list whose items were refused also counts as too short: name the items only
        where, line = locate(node, fault["loc"])
        kind = "unknown setting" if fault["type"] == "extra_forbidden" else fault["msg"]
        place = f"{path}:{line}" if line else f"{path} or the environment"
        lines.append(f"{place}: {'.'.join(where) or 'settings'}: {kind}")
    return "\n".join(lines)

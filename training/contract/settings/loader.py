"""Reading the settings: the file, the environment over it, and every fault with its place."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError as NotJson

from training.contract.errors import SettingsError
from training.contract.settings.lines import locate
from training.contract.settings.whole import ENV_PREFIX, Settings
from training.contract.settings.yaml_file import parse

SETTINGS_VARIABLE = "MTF_SETTINGS"
DEFAULT_FILE = "mtf.yaml"

# where a setting or a section was, and where it is: the old place is refused with the new one's name
MOVED = {
    "keeping": "retention",
    "calendar.utc_offset_hours": "calendar.timezone",
    "learner.algorithm": "learner.algorithms",
    "gate.tolerance": "gate.delta",
    "learner.rho": "learner.batchrl_mtf.rho",
    "learner.candidates": "learner.batchrl_mtf.candidates",
    "learner.serving_candidates": "learner.batchrl_mtf.serving_candidates",
    "learner.serving_pool": "learner.batchrl_mtf.serving_pool",
    "learner.latent_size": "learner.batchrl_mtf.latent_size",
    "learner.latent_clip": "learner.batchrl_mtf.latent_clip",
    "learner.kl_weight": "learner.batchrl_mtf.kl_weight",
    "learner.freeze_generator_after": "learner.batchrl_mtf.freeze_generator_after",
    "learner.precision": "learner.batchrl_mtf.precision",
    "learner.generator_lr": "learner.batchrl_mtf.generator_lr",
    "learner.perturbation_lr": "learner.batchrl_mtf.perturbation_lr",
    "learner.generator_hidden": "learner.batchrl_mtf.generator_hidden",
    "learner.perturbation_hidden": "learner.batchrl_mtf.perturbation_hidden",
}
# what there is no more, and what is in its place
REMOVED = {
    "gate.compare": "the gate always reads paired differences: see gate.delta and gate.evidence",
}

_FIRST = re.compile(r"([a-z_]+(?:\.[a-z_0-9]+)+): (.*)", re.DOTALL)  # a setting in front of a message

Keys = tuple[int | str, ...]  # of a setting: the sections around it, then its name


def settings_path() -> Path:
    """``$MTF_SETTINGS``, else ``mtf.yaml`` in the working folder."""
    return Path(os.environ.get(SETTINGS_VARIABLE, DEFAULT_FILE)).resolve()


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings file and the environment; a relative ``data`` is beside the file.

    Raises :class:`SettingsError` that lists every fault with its file and line, or with its variable.
    """
    path = (path or settings_path()).resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"cannot read the settings file {path}: {error.strerror}. "
            f"Write one with `mtf init`, or name yours in ${SETTINGS_VARIABLE}."
        ) from error
    node, values = parse(path, content)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise SettingsError(f"{path}:1: expected a mapping of settings")
    variables = _variables(os.environ)
    _refuse_unknown_variables(variables)
    try:
        settings = Settings(**{str(name): value for name, value in values.items()})
    except ValidationError as error:
        raise SettingsError(*_explain(error, node, path, variables)) from None
    except NotJson as error:  # pydantic-settings names the section, not the variable
        raise SettingsError(*(_no_json(variables) or [str(error)])) from None
    if not settings.data.is_absolute():
        settings = settings.model_copy(update={"data": path.parent / settings.data})
    if settings.data.is_file():
        place = _place(("data",), node, path, variables)
        raise SettingsError(f"{place}: data: {settings.data} is a file: name a folder")
    return settings


def _variables(environment: Mapping[str, str]) -> dict[Keys, str]:
    """Names of the variables that override settings, by the keys of what they set."""
    names = sorted(name for name in environment if name.upper().startswith(ENV_PREFIX))
    return {tuple(name[len(ENV_PREFIX) :].lower().split("__")): name for name in names}


def _refuse_unknown_variables(variables: Mapping[Keys, str]) -> None:
    """pydantic-settings looks only for the variables of sections and entries that there are."""
    faults = []
    for keys, name in variables.items():
        kind, depth = _kind(keys)
        if depth == 0:
            faults.append(f"${name}: {_moved(keys) or f'there is no setting {keys[0]!r}'}")
        elif depth < len(keys) and not _is_section(kind):
            whole = ENV_PREFIX + "__".join(map(str, keys[:depth])).upper()
            faults.append(f"${name}: {_name(keys[:depth])} has no entries of its own: set ${whole}")
    if faults:
        raise SettingsError(*faults)


def _kind(keys: Keys) -> tuple[Any, int]:
    """The type of a setting, or of the last around it that there is, and how many of the keys lead there."""
    kind: Any = Settings
    for depth, key in enumerate(keys):
        field = kind.model_fields.get(str(key)) if _is_section(kind) else None
        if field is None:
            return kind, depth
        kind = field.annotation
    return kind, len(keys)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _no_json(variables: Mapping[Keys, str]) -> list[str]:
    """The variables of sections and lists whose values are no JSON."""
    kinds = {name: _kind(keys)[0] for keys, name in variables.items()}
    return [
        f"${name}: not JSON: {os.environ[name]!r}; a section or a list is given as JSON, an entry by "
        f"{ENV_PREFIX}SECTION__ENTRY"
        for name, kind in kinds.items()
        if (_is_section(kind) or get_origin(kind) is tuple) and _value(name) is None
    ]


def _value(name: str) -> Any:
    """A variable's value as JSON has it; None where it is no JSON."""
    try:
        return json.loads(os.environ[name])
    except (KeyError, ValueError):
        return None


def _explain(
    error: ValidationError, node: yaml.Node | None, path: Path, variables: Mapping[Keys, str]
) -> list[str]:
    lines = []
    faults = error.errors()
    for fault in faults:
        keys, message = _of_several(fault["loc"], fault["msg"])
        if any(len(f["loc"]) > len(keys) and f["loc"][: len(keys)] == keys for f in faults):
            continue  # a list whose items were refused also counts as too short: name the items only
        name = _name(keys) or "settings"
        if fault["type"] == "extra_forbidden":
            message = _moved(keys) or f"{name}: unknown setting"
        else:
            message = f"{name}: {message}"
        lines.append(f"{_place(keys, node, path, variables)}: {message}")
    return lines


def _of_several(keys: Keys, message: str) -> tuple[Keys, str]:
    """The setting that a message is about, and the message: what has to fit between several sections names
    the first of them in front."""
    message = message.removeprefix("Value error, ")
    found = None if keys else _FIRST.match(message)
    if found is None:
        return keys, message
    return tuple(int(key) if key.isdigit() else key for key in found[1].split(".")), found[2]


def _moved(keys: Keys) -> str | None:
    """Says where a setting, or the section that it is in, is today; None for one that never moved."""
    if told := REMOVED.get(_name(keys)):
        return f"there is no {_name(keys)}: {told}"
    for depth in range(len(keys), 0, -1):
        if new := MOVED.get(_name(keys[:depth])):
            return f"{_name(keys)} is now {_name((new, *keys[depth:]))}"
    return None


def _name(keys: Keys) -> str:
    return ".".join(map(str, keys))


def _place(keys: Keys, node: yaml.Node | None, path: Path, variables: Mapping[Keys, str]) -> str:
    """The variable that a setting came from, or its file and line with the variables that set parts of it."""
    line, held = locate(node, keys)
    blamed, depth = "", held if line else 0
    within = []
    for one, name in variables.items():
        if tuple(map(str, keys[: len(one)])) != one[: len(keys)]:
            continue  # of another setting
        if len(one) > len(keys):
            within.append(f"${name}")
        elif (known := _known(keys, one, name)) >= depth:  # a variable is over the file
            blamed, depth = f"${name}", known
    if blamed:
        return blamed
    place = f"{path}:{line}" if line else str(path)
    return f"{place} with {', '.join(within)}" if within else place


def _known(keys: Keys, of: Keys, name: str) -> int:
    """How many of a setting's keys a variable gives: all where its value is no section."""
    value = _value(name)
    for depth in range(len(of), len(keys)):
        if not isinstance(value, dict):
            return len(keys)  # a value or a list, in place of the file's
        if keys[depth] not in value:
            return depth
        value = value[keys[depth]]
    return len(keys)

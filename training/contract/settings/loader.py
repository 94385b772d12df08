"""Reading the settings: the file, the environment over it, and every fault with its place."""

import os
import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

import yaml
from pydantic import ValidationError

from training.contract.errors import SettingsError
from training.contract.settings.lines import locate, refuse_repeated
from training.contract.settings.whole import ENV_PREFIX, Settings

SETTINGS_VARIABLE = "MTF_SETTINGS"
DEFAULT_FILE = "mtf.yaml"

# where a setting or a section was, and where it is: the old place is refused with the new one's name
MOVED = {
    "keeping": "retention",
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

_FIRST = re.compile(r"([a-z_]+(?:\.[a-z_]+)+): (.*)", re.DOTALL)  # a setting in front of a message

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
    variables = _variables(os.environ)
    _refuse_unknown_sections(variables)
    try:
        settings = Settings(**{str(name): value for name, value in values.items()})
    except ValidationError as error:
        raise SettingsError(_explain(error, node, path, variables)) from None
    if not settings.data.is_absolute():
        settings = settings.model_copy(update={"data": path.parent / settings.data})
    return settings


def _variables(environment: Mapping[str, str]) -> dict[Keys, str]:
    """Names of the variables that override settings, by the keys of what they set."""
    names = sorted(name for name in environment if name.upper().startswith(ENV_PREFIX))
    return {tuple(name[len(ENV_PREFIX) :].lower().split("__")): name for name in names}


def _refuse_unknown_sections(variables: Mapping[Keys, str]) -> None:
    """pydantic-settings looks only for the variables of sections that there are."""
    faults = []
    for keys, name in variables.items():
        if keys[0] not in Settings.model_fields:
            faults.append(f"${name}: {_moved(keys) or f'there is no setting {keys[0]!r}'}")
    if faults:
        raise SettingsError("\n".join(faults))


def _explain(
    error: ValidationError, node: yaml.Node | None, path: Path, variables: Mapping[Keys, str]
) -> str:
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
    return "\n".join(lines)


def _of_several(keys: Keys, message: str) -> tuple[Keys, str]:
    """The setting that a message is about, and the message: what has to fit between several sections names
    the first of them in front."""
    message = message.removeprefix("Value error, ")
    found = None if keys else _FIRST.match(message)
    return (keys, message) if found is None else (tuple(found[1].split(".")), found[2])


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
    """The variable that a setting came from, or its file and line."""
    line, held = locate(node, keys)
    # a variable is over the file's section where both are mappings, and in place of a list or a value
    sections = len(list(takewhile(lambda key: isinstance(key, str), keys[:held])))
    for depth in range(len(keys), max(sections, 1) - 1, -1):
        if keys[:depth] in variables:
            return f"${variables[keys[:depth]]}"
    for below, variable in variables.items():  # of a section whose settings do not fit each other
        if below[: len(keys)] == keys:
            return f"${variable}"
    return f"{path}:{line}" if line else f"{path} or the environment"

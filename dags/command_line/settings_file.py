"""Settings as a commented YAML file: what `mtf init` writes."""

import json
from typing import Any

from pydantic import BaseModel

from training.contract.settings import Settings

HEADER = """\
# Settings of the daily loop. Every value can also come from the environment:
# MTF__LEARNER__STEPS=5000 sets learner.steps. An unknown setting is refused with its line.
# "(paper)" marks a value of BatchRL-MTF (KDD 2022), "(ours)" a choice that the paper leaves open.
"""


def render(settings: Settings, leave_out: tuple[str, ...] = ()) -> str:
    """YAML of all settings with their descriptions as comments; loading it gives them back.

    Sections to be left out are those whose defaults hold.
    """
    return HEADER + "\n".join(_mapping(settings, 0, leave_out)) + "\n"


def _mapping(model: BaseModel, indent: int, leave_out: tuple[str, ...] = ()) -> list[str]:
    lines: list[str] = []
    pad = " " * indent
    for name, field in type(model).model_fields.items():
        if name in leave_out:
            continue
        value = getattr(model, name)
        comment = f"  # {field.description}" if field.description else ""
        if isinstance(value, BaseModel):
            if indent == 0:
                lines.append("")
            lines += [f"{pad}{name}:{comment}", *_mapping(value, indent + 2)]
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            if indent == 0:
                lines.append("")
            lines.append(f"{pad}{name}:{comment}")
            lines += [f"{pad}  - {_flow(item)}" for item in value]
        else:
            lines.append(f"{pad}{name}: {_scalar(value)}{comment}")
    return lines


def _flow(model: BaseModel) -> str:
    parts = [f"{name}: {_scalar(value)}" for name, value in model.model_dump(mode="json").items()]
    return "{" + ", ".join(parts) + "}"


def _scalar(value: Any) -> str:
    """JSON is YAML's flow style."""
    return json.dumps(value, default=str)

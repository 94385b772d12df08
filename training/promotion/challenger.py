"""A night's challenger: the pool is judged beside what may serve now, and the best of it goes on."""

import shutil
from datetime import date
from typing import Any

from training import evaluation
from training.contract.errors import DataError
from training.contract.files import write_atomic
from training.contract.log import STATIC_VERSION
from training.contract.policy import constant_policy, load_policy
from training.contract.records import read_record
from training.contract.settings import Settings
from training.promotion.champion import champion_policy, champions_to_replay


def judge_pool(settings: Settings, day: date) -> dict[str, Any]:
    """Judge what ``train`` has left; the best becomes ``policy.safetensors`` of the day's model.

    Rivals are static weights and the champion from before the day. The record is
    :func:`training.evaluation.evaluate`'s, with the challenger's ``policy``, ``sha256`` and ``version`` and
    how steady earlier champions are on today's states. Raises :class:`DataError` where nothing was trained.
    """
    layout = settings.layout
    trained = read_record(layout, day, "train")
    if trained is None:
        raise DataError(f"no policies of {day}: run `mtf day --date {day}` first")
    pool = {
        name: load_policy(layout.root / one["policy"], one["sha256"]) for name, one in trained["pool"].items()
    }
    leanings = {
        one["factor"]: load_policy(layout.root / one["policy"], one["sha256"])
        for one in trained.get("leanings", {}).values()
    }
    fusion = settings.fusion
    rivals = {"static": constant_policy(settings.state_spec, fusion, fusion.static_action, STATIC_VERSION)}
    champion = champion_policy(settings, before=day)
    if champion.version != STATIC_VERSION:
        rivals["champion"] = champion
    record = evaluation.evaluate(settings, day, pool | rivals, list(pool), leanings)
    chosen = trained["pool"][record["chosen"]]
    path = layout.model(day) / "policy.safetensors"
    write_atomic(path, lambda temporary: shutil.copyfile(layout.root / chosen["policy"], temporary))
    return record | {
        "steadiness": evaluation.steadiness(settings, day, champions_to_replay(settings, day)),
        "policy": path.relative_to(layout.root).as_posix(),
        "sha256": chosen["sha256"],
        "version": chosen["version"],
    }

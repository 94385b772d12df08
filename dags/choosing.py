"""A person's choice of a day's operating point: the gate and the promotion, outside of the day's stages."""

from datetime import date

from dags import stages
from training.contract import in_service
from training.contract.errors import DataError
from training.contract.files import locked
from training.contract.settings import Settings


def choose(settings: Settings, day: date, factor: float, reason: str) -> stages.Record:
    """Put the point of ``factor`` of the day's sweep through the gate and promote it; no stage of the day.

    Returns the gate's record, whose decision is "promote", or "unchanged" where it serves. Raises
    :class:`DataError` where there is no such point or a rule refuses it; what serves then stays.
    """
    from training import promotion

    with locked(settings.layout.stages_lock, shared=True):
        chosen = promotion.choose(settings, day, factor, reason)
        stages.refuse_outdated(settings, day)
        decision: stages.Record = promotion.gate(
            settings, day, smoke=stages.smoke(settings, day), chosen=chosen
        )
        outcome = promotion.promote(settings, day, decision, chosen)
        trying = in_service.read(settings).challenger
        if not outcome["promoted"] and (trying is None or trying.sha256 != chosen.judged["sha256"]):
            raise DataError(f"interaction x{factor:g} of {day} is not promoted: {outcome['reason']}")
        stages.make_report(settings, day)
    return decision | {"outcome": outcome["reason"]}

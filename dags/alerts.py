"""Alerts: one structured line in the log and, where the settings name one, a webhook.

Every alert says what happened and what to do, and names the section of ``docs/operating.md`` that says more.
An alert never fails a day: a webhook that does not answer is a line in the log too.
"""

import traceback
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import httpx
import structlog

from training.contract.errors import DataError, MtfError, PolicyError, SettingsError
from training.contract.records import now
from training.contract.settings import Settings
from training.operations.runbook import RUNBOOK, SECTIONS

LONGEST = 2_000  # characters of what happened: a webhook's receiver cuts longer ones or refuses them
_LEFT = "The champion serves on; later days run without this one."


@dataclass(frozen=True)
class Alert:
    """``name`` is stable, for rules of the receiver; ``runbook`` is the page and its section."""

    name: str
    day: str
    stage: str
    what: str
    todo: str
    runbook: str


def failed_stage(day: date, stage: str, error: BaseException | str) -> Alert:
    """The alert of a stage that failed for good: by its kind of error, what to do."""
    section = SECTIONS[stage]
    again = f"mtf day --date {day}"
    if isinstance(error, SettingsError):
        name, section = "settings_refused", "settings-refused"
        todo = f"Mend the settings file at the line that is named, then `{again}`."
    elif isinstance(error, DataError):
        name = "day_stopped"
        todo = (
            f"Look at the day's page and the quarantine; mend the source, then `{again}`: it goes on at "
            f"{stage}. The next night's run also picks up mended or late files. {_LEFT}"
        )
    elif isinstance(error, PolicyError):
        name, section = "policy_refused", "gate-or-promotion-failed"
        todo = f"Look at the gate's rules on the day's page; then `{again} --force`. {_LEFT}"
    elif isinstance(error, MtfError):
        name = "day_stopped"
        todo = f"Do what the message says, then `{again}`: it goes on at {stage}. {_LEFT}"
    else:
        name, section = "stage_failed", "a-stage-failed-for-no-fault-of-the-data"
        todo = (
            f"Every retry failed. Look at disk, memory and the stores, then clear the task in Airflow or "
            f"`{again}`: it goes on at {stage}. The next night's run also tries it again. {_LEFT}"
        )
    if isinstance(error, BaseException) and not isinstance(error, MtfError):
        error = "".join(traceback.format_exception_only(error)).strip()
    return Alert(name, str(day), stage, str(error)[:LONGEST], todo, f"{RUNBOOK}#{section}")


def missed_deadline(day: str, dag: str, minutes: int) -> Alert:
    return Alert(
        "deadline_missed",
        day,
        dag,
        f"{dag} of {day} is not done {minutes} minutes after it was queued",
        "See in Airflow which task runs or waits; it is not stopped by this alert. The champion serves on.",
        f"{RUNBOOK}#a-deadline-was-missed",
    )


def send(settings: Settings, alert: Alert) -> bool:
    """Log the alert, and post it to ``alerts.webhook``; False when the webhook did not take it."""
    log = structlog.get_logger("mtf.alerts")
    facts = asdict(alert)
    log.error("alert", **facts)
    webhook = settings.alerts.webhook
    if webhook is None:
        return True
    body: dict[str, Any] = {
        # what chat systems show; the rest is for programs
        "text": f"{alert.name}: {alert.day} {alert.stage}: {alert.what}\n{alert.todo}\n{alert.runbook}",
        "sent_ts": now(),
        **facts,
    }
    try:
        answer = httpx.post(webhook.get_secret_value(), json=body, timeout=settings.alerts.timeout_s)
        answer.raise_for_status()
    except Exception as error:  # whatever is wrong with the receiver is not the day's fault
        # neither the address nor the error's text, which holds it: it may carry a token
        log.warning("webhook failed", alert=alert.name, day=alert.day, error=type(error).__name__)
        return False
    return True

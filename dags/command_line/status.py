"""`mtf status`: whether the loop is in order, and what runs."""

from rich.table import Table
from rich.text import Text

from dags.command_line import stack
from dags.command_line.console import busy, console
from training.contract import in_service
from training.contract.files import read_json
from training.contract.records import read_records, recorded_days
from training.contract.settings import Settings, load_settings, settings_path

WORDS = {"good": "good", "held": "worth a look", "stopped": "alarm", "open": "open"}


def status() -> None:
    """Whether today ran, what is served and since when, whether it is better than static weights and by how
    much, what is in quarantine, what drifts; what runs, the guardrail, and how the last days ended.
    """
    settings = load_settings()
    with busy("reading what the days left"):
        from training.operations.report.standing import standing, todos

        answers = standing(settings)
    for service in stack.services(settings, settings_path()):
        pid = stack.pid_of(settings, service.name)
        state = f"running, {service.address}" if pid else "stopped"
        console.print(f"{service.name:8s} {state}")
    colours = {"good": "green", "held": "yellow", "stopped": "red", "open": "cyan"}
    for answer in answers:
        console.print(Text(answer.question, "bold"), Text(WORDS[answer.state], colours[answer.state]))
        console.print(f"  {answer.text}")
    console.print(Text("What is to be done?", "bold"))
    for line in [todo.line for todo in todos(answers)] or ["Nothing."]:
        console.print(Text(f"  {line}"))
    _show_guardrail(settings)
    table = Table("day", "last stage", "ended", "gate")
    for one in recorded_days(settings.layout)[-10:]:
        records = read_records(settings.layout, one)
        last = list(records)[-1]
        ended = "ok" if records[last].get("success", True) else "failed"
        table.add_row(str(one), last, ended, records.get("gate", {}).get("decision", "-"))
    console.print(table)
    index = settings.layout.reports / "index.html"
    if index.exists():
        console.print(f"index page: {index}", soft_wrap=True)


def _show_guardrail(settings: Settings) -> None:
    if settings.layout.guardrail.exists():
        seen = read_json(settings.layout.guardrail)
        row = in_service.read(settings)
        pointers = {"champion": row.champion, "challenger": row.challenger}
        for arm, one in seen["arms"].items():
            serving = pointers[arm]
            if serving is None or serving.version != one["version"]:
                continue  # it was taken out since, or another took its place
            console.print(
                f"guardrail of {arm} {one['version']} at {seen['checked_ts']}: "
                f"{one['verdict'] or 'nothing against it'} ({one['window']['requests']} requests, "
                f"{one['evidence']['reason']})"
            )

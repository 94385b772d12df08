"""The page of :mod:`tests.benchmarks.nights`."""

from typing import Any

from tests.benchmarks.publish import prose, table
from training.contract.settings import Settings

HARM = 0.02
Night = dict[str, Any]


def tables(results: dict[str, Any]) -> str:
    worlds = results["worlds"]
    nights = [night for world in worlds for night in world["nights"]]
    harmful = [night for night in nights if harms(night, "below_best")]
    surely = sum(night["below_best"]["lower"] > HARM for night in harmful)
    longest = max(longest_run(world["nights"]) for world in worlds)
    text = prose(
        f"{len(nights)} nights in {len(worlds)} worlds of {results['users']:,} users. Drawn are the users, "
        f"{results['most'] // 3:,} to {results['most']:,} sessions a day, and how many of these are explored "
        f"on, 4 to 30 %. True returns are of the same {results['truth']:,} sessions for every policy of a "
        "world; *the best* is the better of static weights and the constant of the night."
    )
    text += prose(
        f"**On {len(harmful)} nights a promoted champion was truly more than {HARM:.0%} below the best**, on "
        f"{surely} of them surely (by the 95 % interval of the difference); the same champion for "
        f"{longest} nights at most, where a canary takes {Settings().serving.canary_days:g} days at most. On "
        f"{sum(harms(night, 'below_static') for night in nights)} nights one was so far below static weights."
    )
    columns = (
        "sessions a day",
        "explored",
        "static",
        "best constant",
        "champion in the end",
        "canaries",
        "promoted",
        "out",
        "ended",
        "nights of harm",
        "longest",
        "waiting",
    )
    rows = []
    for world in worlds:
        own = world["nights"]
        events = [action for night in own for action in night["events"]]
        row = [world["sessions_a_day"], f"{world['explored']:.1%}", world["static"]]
        row += [max(night["constant"] for night in own), own[-1]["champion"]]
        row += [events.count(action) for action in ("canary", "promote", "rollback", "end")]
        row += [sum(harms(night, "below_best") for night in own), longest_run(own)]
        rows.append([*row, sum(waits(night) for night in own)])
    text += table(columns, rows)
    return text + prose(
        f"*Nights of harm*: a promoted champion was more than {HARM:.0%} below the best; *longest*: so many "
        "one after another, of the same champion; *out*: a challenger or champion that was taken out by the "
        "guardrail; *ended*: canaries without a gain shown; *waiting*: nights on which static weights still "
        f"served, and the constant of the night was truly more than {HARM:.0%} better."
    )


def harms(night: Night, rival: str) -> bool:
    """Whether a champion that was promoted is truly worse than the rival by more than :data:`HARM`."""
    return bool(night["champion_is"] != "static" and night[rival]["value"] > HARM)


def waits(night: Night) -> bool:
    return bool(night["champion_is"] == "static" and night["below_best"]["value"] > HARM)


def longest_run(nights: list[Night]) -> int:
    """The most nights one after another on which the same promoted champion harms."""
    longest, run, whose = 0, 0, None
    for night in nights:
        same = night["champion_is"] == whose
        run = 0 if not harms(night, "below_best") else run + 1 if same else 1
        whose, longest = night["champion_is"], max(longest, run)
    return longest

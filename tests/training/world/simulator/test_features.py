"""In-world states against the contract's own assembler and against a plain loop over the log."""

from datetime import UTC, timedelta

import numpy as np

from tests.training.world.simulator.conftest import DAY
from training.contract.state import context_values, history_columns, session_columns
from training.world.simulator.features import History
from training.world.simulator.world import World


def test_states_are_what_the_specification_assembles(world: World) -> None:
    settings = world.settings
    signals = [s.column for s in settings.signals]
    order = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate")
    places = [order.index(column) for column in signals]
    log: dict[int, list[tuple]] = {}  # user row: (session id, day, events, predictions, play_s, completion)
    names = [
        *history_columns(settings.signal_names),
        *session_columns(settings.signal_names, settings.head_names),
    ]
    checked = 0
    last_day: dict[int, int] = {}
    for offset in (0, 1, 3):
        day = DAY + timedelta(days=offset)
        past = {user: rows[-settings.state.history_length :] for user, rows in log.items()}
        world.start_day(day)
        running: dict[str, list[tuple]] = {}
        while len(world.live):
            requests = world.requests()
            states = world.states_of(requests)
            outcome = world.respond(requests, requests.item_ids[:, :6], ["x"] * len(requests))
            for row in range(offset, len(requests), 31):
                user, name = int(requests.user_row[row]), requests.session_id[row]
                raw = {n: [world.population.profile[n][user]] for n in settings.state_spec.inputs("profile")}
                values = [
                    *_history(past.get(user, []), day, last_day.get(user)),
                    *_session(running.get(name, [])),
                ]
                raw |= {n: [v] for n, v in zip(names, values, strict=True)}
                time = requests.event_ts[row].astype(object).replace(tzinfo=UTC)
                raw |= {n: [v] for n, v in context_values(time, settings.calendar.zone).items()}
                expected = settings.state_spec.assemble(raw)[0]
                np.testing.assert_allclose(states[row], expected, rtol=1e-5, atol=1e-6)
                checked += 1
            for row, name in enumerate(requests.session_id):
                page = []
                for place in range(6):
                    d, play = int(outcome.duration_ms[row, place]), int(outcome.play_time_ms[row, place])
                    completion = min(play / d, 1.0) if d else None
                    page.append(
                        (
                            name,
                            day,
                            outcome.events[row, place, places].tolist(),
                            requests.predictions[row, place].tolist(),
                            play / 1000,
                            completion,
                        )
                    )
                log.setdefault(int(requests.user_row[row]), []).extend(page)
                running.setdefault(name, []).append(page)
        for user in {int(u) for u in world.sessions.user_row[world.sessions.step > 0]}:
            last_day[user] = day.toordinal()
        world.end_day()
    assert checked > 60


def _history(rows: list[tuple], day, last_day: int | None) -> list[float]:
    count = len(rows)
    if not count:
        return [0.0] * (1 + 7 + 5)
    known = [completion for *_, completion in rows if completion is not None]
    sessions, days = len({name for name, *_ in rows}), len({day for _, day, *_ in rows})
    rates = [sum(events[k] for _, _, events, *_ in rows) / count for k in range(7)]
    return [
        count,
        *rates,
        sum(play for *_, play, _ in rows) / count,
        sum(known) / len(known) if known else 0.0,
        sessions / days,
        count / sessions,
        day.toordinal() - last_day - 1,
    ]


def _session(pages: list[list[tuple]]) -> list[float]:
    def felt(part: list[list[tuple]]) -> np.ndarray:
        rows = [row for page in part for row in page]
        counts = [sum(events[k] for _, _, events, *_ in rows) for k in range(7)]
        return np.array([len(rows), *counts, sum(play for *_, play, _ in rows)])

    def predicted(part: list[list[tuple]]) -> np.ndarray:
        return np.array([sum(row[3][k] for page in part for row in page) for k in range(8)])

    whole = [np.concatenate([felt([page]), predicted([page])]) for page in pages]
    decayed = sum((0.7**back * page for back, page in enumerate(reversed(whole))), np.zeros(17))
    return [len(pages), *felt(pages), *felt(pages[-1:]), *predicted(pages[-1:]), *decayed]


def test_history_keeps_the_last_impressions_of_each_user() -> None:
    def chunk(user: list[int], play: list[float]) -> History:
        n = len(user)
        return History(
            np.array(user, np.int32),
            np.zeros(n, np.int64),
            np.zeros(n, np.int32),
            np.zeros(n, np.uint64),
            np.array(play, np.float32),
            np.zeros(n, np.float32),
        )

    history = chunk([1, 2, 1], [1, 2, 3]).extended([chunk([1, 3], [4, 5]), chunk([1, 2], [6, 7])], 2)
    assert history.user_row.tolist() == [1, 1, 2, 2, 3]
    assert history.play_s.tolist() == [4, 6, 2, 7, 5]

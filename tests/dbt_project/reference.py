"""The marts once more, in plain Python over the lake's rows: what the SQL is held against."""

from collections import defaultdict
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np

from training.contract.session import SessionRules, Shown, add_feedback, within_gap
from training.contract.settings import Settings

Row = dict[str, Any]


def microseconds(instant: datetime) -> int:
    return (instant - datetime.fromtimestamp(0, instant.tzinfo)) // timedelta(microseconds=1)


class Reference:
    """``impressions`` and ``decisions`` are the rows of all landed days."""

    def __init__(self, settings: Settings, impressions: list[Row], decisions: list[Row]) -> None:
        self.settings = settings
        self.gap = timedelta(minutes=settings.session.gap_minutes)
        self.impressions = impressions
        self.decisions = {d["request_id"]: d for d in decisions}
        self.shown: dict[str, list[Row]] = defaultdict(list)
        for row in impressions:
            self.shown[row["request_id"]].append(row)
        self.requests = {r: self.decisions.get(r) or self.shown[r][0] for r in {*self.decisions, *self.shown}}
        self.log_end = max(r["event_ts"] for r in self.requests.values())
        self.sessions = self._sessions()

    def day(self, instant: datetime) -> date:
        return self.settings.calendar.day_of(instant)

    def _sessions(self) -> dict[tuple[int, str], list[str]]:
        """Request ids in order, by user and session id."""
        logged = defaultdict(list)
        for request_id, r in self.requests.items():
            logged[r["user_id"], r["session_id"]].append((r["event_ts"], request_id))
        sessions: dict[tuple[int, str], list[str]] = {}
        for (user, served), events in logged.items():
            events.sort()
            starts = [
                0,
                *(i for i, (a, b) in enumerate(pairwise(events), 1) if not within_gap(a[0], b[0], self.gap)),
            ]
            for first, last in pairwise([*starts, len(events)]):
                start = microseconds(events[first][0])
                name = f"{user}-{start}" if served is None else f"{served}~{start}" if first else served
                sessions[user, name] = [request_id for _, request_id in events[first:last]]
        return sessions

    def watch_reward(self, row: Row) -> float:
        """Play time and integrity of eq. (2), of one shown item."""
        weights = self.settings.reward
        played = weights.play_time_weight * min(row["play_time_ms"] / 1000, weights.play_time_cap_s)
        if not row["duration_ms"]:
            return played
        return played + weights.integrity_weight * min(row["play_time_ms"] / row["duration_ms"], 1.0)

    def reward(self, row: Row) -> float:
        """Eq. (2), of one shown item."""
        return self.watch_reward(row) + sum(s.weight * row[s.column] for s in self.settings.signals)

    def transitions(self) -> dict[str, Row]:
        found = {}
        for (_, session_id), ids in self.sessions.items():
            for step, (request_id, following) in enumerate(pairwise([*ids, None])):
                decision = self.decisions.get(request_id)
                if decision is None or decision["state"] is None:
                    continue
                after = self.decisions.get(following)
                fits = after is not None and after["state_spec"] == decision["state_spec"]
                over = following is None and not within_gap(decision["event_ts"], self.log_end, self.gap)
                next_state = after["state"] if fits else None
                shown = sorted(self.shown[request_id], key=lambda row: (row["position"], row["item_id"]))
                found[request_id] = {
                    "session_id": session_id,
                    "step": step,
                    "state": decision["state"],
                    "next_state": next_state,
                    "next_request_id": following,
                    "done": over,
                    "truncated": next_state is None and not over,
                    "reward": sum(map(self.reward, shown)),
                    "impressions": len(shown),
                    "watch_reward": sum(map(self.watch_reward, shown)),
                    "item_scores": [row[f"p_{h.name}"] or 0.0 for row in shown for h in self.settings.heads]
                    or None,
                    "item_rewards": [self.reward(row) for row in shown] or None,
                }
        return found

    def history(self) -> dict[tuple[int, date], Row]:
        session_of = {r: key for key, ids in self.sessions.items() for r in ids}
        rows = defaultdict(list)
        for row in self.impressions:
            rows[row["user_id"]].append(row)
        found = {}
        for user, shown in rows.items():
            shown.sort(key=lambda r: (r["event_ts"], r["request_id"], r["position"], r["item_id"]))
            for day in {self.day(r["event_ts"]) for r in shown}:
                window = [r for r in shown if self.day(r["event_ts"]) <= day]
                window = window[-self.settings.state.history_length :]
                known = [r for r in window if r["duration_ms"] > 0]
                completion = [min(r["play_time_ms"] / r["duration_ms"], 1.0) for r in known]
                sessions = len({session_of[r["request_id"]] for r in window})
                found[user, day] = {
                    "hist_count": len(window),
                    **{
                        f"hist_{s.name}_rate": sum(r[s.column] for r in window) / len(window)
                        for s in self.settings.signals
                    },
                    "hist_play_s": sum(r["play_time_ms"] for r in window) / 1000 / len(window),
                    "hist_completion": sum(completion) / len(completion) if completion else 0.0,
                    "hist_daily_sessions": sessions / len({self.day(r["event_ts"]) for r in window}),
                    "hist_session_length": len(window) / sessions,
                    "hist_days_since_last": 0,
                    "hist_last_ts": window[-1]["event_ts"],
                }
        return found

    def session_state(self) -> dict[str, Row]:
        """The feedback replayed through the rules that the service applies to it."""
        rules = SessionRules.of(self.settings)
        arrivals = sorted(
            (rows[0]["feedback_ts"], request_id, rows)
            for request_id, rows in self.shown.items()
            if rows[0]["feedback_ts"] is not None
        )
        session_of = {r: key[1] for key, ids in self.sessions.items() for r in ids}
        stored: dict[int, Row] = {}
        found = {}
        for arrived, request_id, rows in arrivals:
            user = rows[0]["user_id"]
            session_id = rows[0]["session_id"] or session_of[request_id]
            predictions = [
                sum(float(np.float32(row[f"p_{head}"] or 0.0)) for row in rows) for head in rules.heads
            ]
            shown = Shown(len(rows), predictions)
            stored[user] = add_feedback(
                stored.get(user, {}), rules, session_id, request_id, arrived, rows, shown=shown
            )
            found[request_id] = {**stored[user], "event_timestamp": arrived}
        return found

    def policy_daily(self) -> dict[tuple[date, str], Row]:
        days = {self.day(r["event_ts"]) for r in self.requests.values()}
        seen = defaultdict(set)
        by_arm = defaultdict(list)
        for request_id, r in self.requests.items():
            arm = self.decisions[request_id]["arm"] if request_id in self.decisions else "unknown"
            seen[self.day(r["event_ts"])].add(r["user_id"])
            by_arm[self.day(r["event_ts"]), arm].append(request_id)
        first_of = {ids[0]: ids for ids in self.sessions.values()}
        found = {}
        for (day, arm), ids in by_arm.items():
            sessions = [first_of[r] for r in ids if r in first_of]
            returns = [sum(self.reward(row) for r in s for row in self.shown[r]) for s in sessions]
            users = {self.requests[r]["user_id"] for r in ids}
            tomorrow = day + timedelta(days=1)
            found[day, arm] = {
                "requests": len(ids),
                "impressions": sum(len(self.shown[r]) for r in ids),
                "users": len(users),
                "sessions": len(sessions),
                "reward_mean": sum(self.reward(row) for r in ids for row in self.shown[r]) / len(ids),
                "session_return_mean": sum(returns) / len(returns) if returns else None,
                "session_length_mean": sum(map(len, sessions)) / len(sessions) if sessions else None,
                "return_rate": len(users & seen[tomorrow]) / len(users) if tomorrow in days else None,
            }
        return found


def user_versions(settings: Settings, users: list[Row]) -> list[Row]:
    """Type 2 over the landed profiles (each with the ``dt`` of its partition), by user and version."""
    columns = [feature.column for feature in settings.state.profile]
    found: list[Row] = []
    for row in sorted(users, key=lambda r: (r["user_id"], r["dt"])):
        begins = settings.day_start(row["dt"])
        ends = settings.day_start(row["dt"] + timedelta(days=1)) - timedelta(microseconds=1)
        version = {
            "user_id": row["user_id"],
            "version": 1,
            "valid_from": max(begins, min(row["updated_ts"], ends)),
            "valid_to": None,
            **{column: row[column] for column in columns},
            "dt": row["dt"],
        }
        before = found[-1] if found and found[-1]["user_id"] == row["user_id"] else None
        if before is not None:
            if all(before[column] == version[column] for column in columns):
                continue
            version["version"] = before["version"] + 1
            before["valid_to"] = version["valid_from"]
        found.append(version)
    return found

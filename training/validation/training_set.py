"""What must hold of the transitions of the learner's window together, beside what holds of each."""

from training.contract.log import MIXED_ARMS
from training.contract.settings import Settings
from training.validation.checks import measure, severity_of
from training.validation.partitions import Partition, inspect, parquet_files
from training.validation.table import ValidatedTable

# Below this share of the window's transitions in the current state specification, most of it is lost.
LEAST_SPEC_SHARE = 0.9


def training_measures(settings: Settings, table: ValidatedTable) -> None:
    """Add the window's measures, and the checks on them, to its table."""
    partition, version = table.partition, settings.state_spec.version
    assert partition is not None  # the table was judged
    columns = partition.columns
    wanted: dict[str, tuple[str, str]] = {
        "current_transitions": ("state_spec", f"count(*) FILTER (WHERE state_spec = '{version}')"),
        "reward_std": ("reward", "coalesce(stddev_pop(CASE WHEN isfinite(reward) THEN reward END), 0)"),
    }
    wanted |= {f"{arm}_transitions": ("arm", f"count(*) FILTER (WHERE arm = '{arm}')") for arm in MIXED_ARMS}
    table.measures |= partition.measures({n: sql for n, (c, sql) in wanted.items() if c in columns})
    found = table.measures
    if "current_transitions" in found:
        minimum = settings.validation.min_transitions
        share = found["current_transitions"] / table.rows if table.rows else 0.0
        found["current_spec_share"] = share
        table.day_checks += [
            measure(
                "current_transitions",
                f"there are at least {minimum} transitions of the current state specification {version}",
                minimum,
                source="state_spec",
            ),
            measure(
                "current_spec_share",
                f"at least {LEAST_SPEC_SHARE:.0%} of the transitions are of the current state specification",
                LEAST_SPEC_SHARE,
                severity="warning",
                source="state_spec",
            ),
        ]
    if "reward_std" in found and table.rows:
        text = "rewards differ: a constant reward teaches nothing"
        table.day_checks.append(measure("reward_std", text, 0.0, source="reward", strict_min=True))
    if settings.learner.mixed_exploration and "arm" in columns and table.rows:
        _overlap(settings, table)
    if "action" in columns and table.rows:
        _coverage(settings, table, partition)
    if "reward" in columns:
        _reward_range(settings, table, partition)


def _overlap(settings: Settings, table: ValidatedTable) -> None:
    """Mixed exploration trains on equal parts of the two groups: a tiny one is seen over and over."""
    least = settings.validation.min_exploring_share
    for arm in MIXED_ARMS:
        share = table.measures[f"{arm}_transitions"] / table.rows
        table.measures[f"{arm}_share"] = share
        text = f"at least {least:.1%} of the transitions are of the {arm} group ({share:.2%} are)"
        table.day_checks.append(
            measure(
                f"{arm}_share",
                text,
                least,
                None,
                severity_of(settings, "overlap"),
                "arm",
                strict_min=least == 0,
            )
        )


def _coverage(settings: Settings, table: ValidatedTable, partition: Partition) -> None:
    """Share of the tenths of a head's interval [-1, 1] that hold a transition's action."""
    least = settings.validation.min_action_coverage
    tenths = {
        head.name: f"count(DISTINCT least(floor((action[{i}] + 1.0) * 5.0), 9)::INT) / 10.0"
        for i, head in enumerate(settings.heads, start=1)
    }
    for head, share in partition.measures(tenths).items():
        table.measures[f"{head}_coverage"] = share
        text = f"the logged actions of {head} reach {least:.0%} of its interval's tenths or more"
        table.day_checks.append(
            measure(f"{head}_coverage", text, least, None, severity_of(settings, "coverage"), "action")
        )


def _reward_range(settings: Settings, table: ValidatedTable, partition: Partition) -> None:
    """Rewards of the window within those of the recent days before it, give or take their breadth."""
    before = Partition(inspect(parquet_files(list(table.recent_folders.values()))))
    if before.empty or "reward" not in before.columns or not table.rows:
        table.leave_out("day", "range of rewards", "there is no day before the window to hold them against")
        return
    wanted = {name: f"{name}(CASE WHEN isfinite(reward) THEN reward END)" for name in ("min", "max")}
    past, now = before.measures(wanted), partition.measures(wanted)
    if None in (*past.values(), *now.values()):
        return  # said already: no reward is a finite number
    breadth = past["max"] - past["min"]
    low, high = past["min"] - breadth, past["max"] + breadth
    for name, found in now.items():
        table.measures[f"reward_{name}"] = found
        text = f"the {name} reward, {found:.4g}, lies within that of the days before, {low:.4g} to {high:.4g}"
        table.day_checks.append(
            measure(f"reward_{name}", text, low, high, severity_of(settings, "reward_range"), "reward")
        )

"""The row checks of a landed table, put to a content that is not landed yet."""

import tempfile
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.settings import Settings
from training.validation import rules as table_rules
from training.validation.partitions import Partition, inspect
from training.validation.rules import Rules

RULES = {IMPRESSIONS: table_rules.impressions, DECISIONS: table_rules.decisions, USERS: table_rules.users}


def broken_rows(settings: Settings, table: str, day: date, content: pa.Table) -> pa.Table:
    """Rows of ``content`` that would be quarantined if it were the day's, with their ``reason``."""
    rules: Rules = RULES[table](settings, day)
    checks = [check for check in rules.checks if check.severity == "critical"]
    with tempfile.TemporaryDirectory() as folder:
        path, found = Path(folder) / "content.parquet", Path(folder) / "broken.parquet"
        pq.write_table(content, path)
        partition = Partition(inspect([path]))
        repeated = rules.key_text if partition.repeated(rules.key) else None
        count = partition.write_bad_rows(found, checks, rules.key, max(content.num_rows, 1), repeated)
        if count:
            return pq.ParquetFile(found).read()
    return content.slice(0, 0).append_column("reason", pa.array([], pa.string()))

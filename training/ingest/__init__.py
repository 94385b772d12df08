"""How do logs come into the lake? A day at a time, under the contracts of ``training.contract``.

Adapters: :mod:`service_log` (the service's own log), :mod:`kuairand` (its official CSVs) and
:mod:`template` (Parquet or CSV files of your own, and the place to start an adapter from). All of them
land through :mod:`landing`, which keeps a day atomic, idempotent and versioned.
"""

from training.ingest.daily import land_day
from training.ingest.kuairand import land_kuairand
from training.ingest.landing import changed_days, land, landed, late_users
from training.ingest.own_files import land_files
from training.ingest.predictions import with_predictions
from training.ingest.service_log import has_service_log, land_service_log
from training.ingest.sources import source_files

__all__ = [
    "changed_days",
    "has_service_log",
    "land",
    "land_day",
    "land_files",
    "land_kuairand",
    "land_service_log",
    "landed",
    "late_users",
    "source_files",
    "with_predictions",
]

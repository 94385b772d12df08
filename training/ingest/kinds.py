"""What kind is a column of a sample: of a profile's columns, and of ids?"""

import numpy as np
import pandas as pd

from training.contract.arrays import Float64Array
from training.contract.settings import IdKind, ProfileFeature

_MOST_CATEGORIES = 50
_LARGEST = 1e15  # that validation takes for a number of a profile
_REPEATS = 3  # of a text, on average, for more than ten of them to be categories


def numeric(name: str, values: Float64Array) -> ProfileFeature:
    """Of numbers: a flag, a count or an amount, or a number as it is."""
    there = values[np.abs(values) <= _LARGEST]
    if not len(there):
        return ProfileFeature(column=name, kind="numeric")
    if np.isin(there, (0.0, 1.0)).all():
        return ProfileFeature(column=name, kind="flag")
    if there.min() >= 0.0 and there.max() > 1.0:
        half = float(np.median(there[there > 0.0]))
        return ProfileFeature(column=name, kind="saturating", half=float(f"{half:.3g}"))
    return ProfileFeature(column=name, kind="numeric")


def categories(name: str, texts: pd.Series) -> ProfileFeature | str:
    """Of texts; or why they are no categories."""
    counts = texts.value_counts()
    if len(counts) > _MOST_CATEGORIES or (len(counts) > 10 and len(texts) < _REPEATS * len(counts)):
        return f"{len(counts)} different texts in {len(texts)} rows: too many for categories"
    return ProfileFeature(column=name, kind="categorical", categories=tuple(map(str, counts.index)))


def ids(columns: list[list[pd.Series]]) -> IdKind:
    """What ids are, by all columns of them; two must not become one."""
    texts = [series.dropna() for found in columns for series in found]
    every = pd.concat(texts) if texts else pd.Series([], dtype="string")
    every = every.str.strip().str.replace(r"\.0+$", "", regex=True)
    every = every[every != ""]  # Parquet's empty text; what has no id tells nothing of ids
    if every.empty or every.str.fullmatch(r"-?(0|[1-9][0-9]{0,17})").all():
        return "int64"
    if every.str.fullmatch(r"0|[1-9][0-9]{0,19}").all():
        largest = max(map(int, every))
        return "int64" if largest < 1 << 63 else "uint64" if largest < 1 << 64 else "string"
    return "string"

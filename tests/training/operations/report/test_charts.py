"""Charts say what they are given, in its order."""

import re
from datetime import date

from matplotlib import pyplot as plt

from training.operations.report import charts


def test_days_over_new_year_stay_in_order():
    days = [date(2025, 12, 30), date(2025, 12, 31), date(2026, 1, 1)]
    with plt.rc_context({"svg.fonttype": "none"}):  # text as text
        drawn = charts.lines({"rows": (days, [1.0, 2.0, 3.0])}, x="day", y="rows", about="Rows by day")
    assert re.findall(r">(\d\d-\d\d)<", drawn) == ["12-30", "12-31", "01-01"]

"""May a day be learnt from? Great Expectations suites as code, Data Docs, quarantine of bad rows.

:mod:`.stages` judges what was landed, transformed and is to be learnt from; each function returns the stage's
record (plain JSON) and raises nothing for bad data: the caller stops the day when ``record["success"]`` is
false. Great Expectations takes seconds to import, so that is done where a day is judged.
"""

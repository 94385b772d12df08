"""Whose words are on the console? Ours: what libraries warn each other of is not for who runs a day.

`python -W default` (or ``$PYTHONWARNINGS``) and ``$MLFLOW_LOGGING_LEVEL`` bring them back.
"""

import logging
import os
import sys
import warnings


def quiet() -> None:
    """Before the libraries are imported; what they set up after it stays as quiet."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # what fails is raised, too
    logging.getLogger("alembic").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        # some hand all warnings to the log, and undo the filter
        logging.getLogger("py.warnings").addFilter(lambda record: False)

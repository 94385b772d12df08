"""How is a fusion policy learnt and judged? Its ``contract`` is all that serving may import.

Importing it tells the packages below us to report nothing to their makers. Several do so by themselves, from
the service too: ONNX Runtime from each worker, with an identifier that it leaves in the home folder. What the
environment sets already stays.
"""

import os

_REPORTS_NOTHING = {
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",  # dbt's
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
}
for _name, _value in _REPORTS_NOTHING.items():
    os.environ.setdefault(_name, _value)

"""MLflow's pages over the registry, in one process: `python -m training.operations.mlflow_server`.

`mlflow server` starts ten processes (job runners of its own, that nothing here uses), asks to be allowed to
report its use, and opens an assistant beside every page that sends them to a language model. This is its
application without: the assistant's API is not there, and the page begins with both put away. The names by
which it is told so are MLflow's own; ``tests/training/operations/test_mlflow_server.py`` looks at the pages.
"""

import argparse
import os
from collections.abc import Sequence

import uvicorn
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

# of the browser's local storage, as MLflow's page writes it
_PUT_AWAY = {
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.settings.telemetry.enabled_v1": "false",
    "mlflow.telemetry.info.alert.dismissed_v1": "true",
}
_HEAD = (
    "<script>"
    + "".join(f'localStorage.setItem("{name}","{value}");' for name, value in _PUT_AWAY.items())
    + "</script><style>[data-assistant-ui]{display:none!important}</style>"
)
# whatever the page would like to fetch, it fetches here
_POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'"
_ASSISTANT = "/ajax-api/3.0/mlflow/assistant"


class Pages:
    """MLflow's application with a first page of our own, and without the assistant."""

    def __init__(self, app: ASGIApp, index: str) -> None:
        self._app, self._index = app, index.replace("<head>", f"<head>{_HEAD}", 1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path == "/":
            page = HTMLResponse(self._index, headers={"content-security-policy": _POLICY})
            return await page(scope, receive, send)
        if scope["type"] == "http" and path.startswith(_ASSISTANT):
            return await PlainTextResponse("there is no assistant here", 404)(scope, receive, send)
        await self._app(scope, receive, send)


def application(backend: str, artifacts: str) -> Pages:
    """Over the database ``backend``, with the runs' files below ``artifacts``."""
    from mlflow.server import constants

    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        constants.BACKEND_STORE_URI_ENV_VAR: backend,
        constants.REGISTRY_STORE_URI_ENV_VAR: backend,
        constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
    }
    from mlflow.server import app as flask
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(backend, backend, "mlflow-artifacts:/")
    with flask.open_resource("js/build/index.html", "rt", "utf-8") as file:
        return Pages(app, str(file.read()))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--backend", "--artifacts", "--host"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args(arguments)
    app = application(given.backend, given.artifacts)
    uvicorn.run(app, host=given.host, port=given.port, log_level="warning", server_header=False)


if __name__ == "__main__":
    main()

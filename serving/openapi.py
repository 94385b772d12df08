"""The service's OpenAPI document, written from the settings so that its limits are the real ones."""

from typing import Any

from serving.arms import ARMS
from serving.messages import MAXIMUM_ID_LENGTH, MAXIMUM_MS
from serving.ranker import NO_POLICY, POLICY, STORE
from training.contract.settings import Settings

_INT64 = {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1}
_ID = {"type": "string", "minLength": 1, "maxLength": MAXIMUM_ID_LENGTH}


def document(settings: Settings) -> dict[str, Any]:
    """OpenAPI 3.1 of every endpoint that this service answers."""
    serving = settings.serving
    heads = {
        head.name: {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "maximum": head.maximum},
            "maxItems": serving.max_candidates,
            "description": f"predicted {head.name} of each candidate, in the order of item_id",
        }
        for head in settings.heads
    }
    signals = {signal.column: {"enum": [0, 1], "default": 0} for signal in settings.signals}
    milliseconds = {"type": "integer", "minimum": 0, "maximum": MAXIMUM_MS, "default": 0}
    time = (
        {
            "event_ts": _or_null(
                type="string",
                format="date-time",
                description="the request's own time, for simulated or replayed traffic",
            )
        }
        if serving.accept_event_ts
        else {}
    )
    rank_request = _object(
        ["user_id", "candidates"],
        request_id=_or_null(**_ID, description="unique; made by the service when absent"),
        user_id=_INT64,
        session_id=_or_null(
            **_ID,
            description="when absent, the user's last session if it is not older than "
            f"{settings.session.gap_minutes:g} minutes, else a new one",
        ),
        k=_or_null(type="integer", minimum=1, maximum=serving.max_k, default=serving.default_k),
        context=_or_null(**_object([])),
        candidates=_object(
            ["item_id"],
            item_id={
                "type": "array",
                "items": _INT64,
                "minItems": 1,
                "maxItems": serving.max_candidates,
                "uniqueItems": True,
            },
            scores={
                **_object([], **heads),
                "description": "one list a head, as long as item_id; a head left out cannot change the order",
            },
        ),
        **time,
    )
    rank_answer = _object(
        ["request_id", "session_id", "items", "scores", "weights", "policy"],
        request_id=_ID,
        session_id={"type": "string"},
        items={"type": "array", "items": _INT64, "description": "best first, at most k"},
        scores={"type": "array", "items": {"type": "number"}, "description": "eq. (1) of each item"},
        weights=_object(list(heads), **{name: {"type": "number"} for name in heads}),
        policy=_object(
            ["version", "arm", "fallback"],
            version={"type": "string", "description": "'static' when no policy was used"},
            arm={"enum": list(ARMS)},
            fallback={
                "enum": [NO_POLICY, STORE, POLICY, None],
                "description": "why static weights were served: no champion yet, no state in time, or a "
                "policy without a usable action",
            },
        ),
    )
    feedback_request = _object(
        ["request_id", "events"],
        request_id=_ID,
        user_id=_or_null(**_INT64, description="needed only when another machine ranked the request"),
        session_id=_or_null(**_ID),
        events={
            "type": "array",
            "maxItems": serving.max_k,
            "items": _object(
                ["item_id"], item_id=_INT64, **signals, play_time_ms=milliseconds, duration_ms=milliseconds
            ),
        },
        **time,
    )
    feedback_answer = _object(
        ["request_id", "session_id", "events", "state_moved"],
        request_id=_ID,
        session_id={"type": "string"},
        events={"type": "integer"},
        state_moved={"type": "boolean", "description": "false: logged, but the store did not take it"},
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Multi-task fusion ranking",
            "version": "1",
            "description": "Orders candidates by f(o | α) = Σ α·log(o + β) with weights α chosen for the "
            "user's state. What was answered is on disk before the answer is sent.",
        },
        "paths": {
            "/rank": {
                "post": _operation(
                    "rank",
                    "Order candidates",
                    rank_request,
                    rank_answer,
                    {"503": "the decision could not be made durable; nothing was served"},
                )
            },
            "/feedback": {
                "post": {
                    **_operation(
                        "feedback",
                        "What the user did; it moves the state of the next request",
                        feedback_request,
                        feedback_answer,
                        {
                            "401": "no token, or a wrong one",
                            "404": "unknown request, and no user_id in the body",
                            "503": "the feedback could not be made durable",
                        },
                    ),
                    "security": [{"token": []}],
                }
            },
            "/status": {"get": _plain("status", "What this worker serves", "application/json")},
            "/metrics": {"get": _plain("metrics", "Prometheus metrics of all workers", "text/plain")},
            "/livez": {"get": _plain("livez", "The process answers", "text/plain")},
            "/healthz": {"get": _plain("healthz", "The process answers", "text/plain")},
            "/readyz": {
                "get": _plain(
                    "readyz", "Fit to take traffic", "text/plain", {"503": "the store was not reached yet"}
                )
            },
        },
        "components": {
            "schemas": {"Error": _object(["error"], error={"type": "string"})},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _or_null(**schema: Any) -> dict[str, Any]:
    """A field that may be left out, or be null, which means the same."""
    return {**schema, "type": [schema["type"], "null"]}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _operation(
    name: str, summary: str, body: dict[str, Any], answer: dict[str, Any], errors: dict[str, str]
) -> dict[str, Any]:
    reasons = {
        "400": "the body is wrong; the error names the field",
        "408": "the body did not arrive in time",
        "413": "the body is too large",
        **errors,
    }
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"description": "done", "content": {"application/json": {"schema": answer}}},
            **{status: {"description": text, "content": error} for status, text in sorted(reasons.items())},
        },
    }


def _plain(name: str, summary: str, media_type: str, errors: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "done", "content": {media_type: {}}},
            **{status: {"description": text} for status, text in (errors or {}).items()},
        },
    }

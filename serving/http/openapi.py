"""The service's OpenAPI document, written from the settings so that its limits are the real ones."""

from typing import Any

import msgspec

from serving.http.requests import BINARY, JSON
from serving.http.schema import MAXIMUM_ID_LENGTH, Bodies
from training.contract.log import ARMS, FALLBACKS, Id
from training.contract.settings import Settings

_ID = {"type": "string", "minLength": 1, "maxLength": MAXIMUM_ID_LENGTH}

_BINARY_BODY = (
    "a safetensors file of request U8 [m] (RankFields as JSON), item_id I64 [n], and scores.<head> F32 or "
    "F64 [n] for each head that is sent"
)
_BINARY_ANSWER = (
    "with `Accept: application/x-safetensors`: a safetensors file of items I64 [k], scores F64 [k], and "
    "answer U8 [m], the other fields as JSON"
)


def document(settings: Settings) -> dict[str, Any]:
    """OpenAPI 3.1 of every endpoint that this service answers."""
    bodies = Bodies(settings)
    _, schemas = msgspec.json.schema_components(
        [bodies.rank, bodies.rank_fields, bodies.feedback], ref_template="#/components/schemas/{name}"
    )
    if not settings.serving.accept_event_ts:
        for name in ("RankBody", "RankFields", "FeedbackBody"):
            del schemas[name]["properties"]["event_ts"]  # refused
    names = [head.name for head in settings.heads]
    heads = settings.heads[:3]
    rank_answer = _object(
        ["request_id", "session_id", "items", "scores", "weights", "policy"],
        request_id=_ID,
        session_id={"type": "string"},
        items={"type": "array", "items": bodies.items.schema, "description": "best first, at most k"},
        scores={
            "type": "array",
            "items": {"type": "number"},
            "description": "what each item was ranked by: eq. (1), or the own score of a policy that ranks",
        },
        weights=_object(names, **{name: {"type": "number"} for name in names}),
        policy=_object(
            ["version", "arm", "fallback"],
            version={"type": "string", "description": "'static' when no policy was used"},
            arm={"enum": list(ARMS)},
            fallback={
                "enum": [*FALLBACKS, None],
                "description": "why static weights were served: no champion yet, no state in time, features "
                "that are too old, or a policy without a usable action or too slow",
            },
        ),
    )
    feedback_answer = _object(
        ["request_id", "session_id", "events", "not_ranked", "state_moved"],
        request_id=_ID,
        session_id={"type": "string"},
        events={"type": "integer", "description": "that were taken"},
        not_ranked={
            "type": "array",
            "items": bodies.items.schema,
            "description": "items that the request did not rank: nothing of them was taken",
        },
        state_moved={
            "type": "boolean",
            "description": "false: logged, but the store did not take it; or nothing of it was taken",
        },
    )
    items: list[Id] = ["a", "b", "c"] if settings.ids.items == "string" else [11, 12, 13]
    rank_example = {
        "user_id": "ann" if settings.ids.users == "string" else 5,
        "request_id": "example",
        "k": 2,
        "candidates": {
            "item_id": items,
            "scores": {head.name: [round(head.maximum * at, 3) for at in (0.1, 0.9, 0.5)] for head in heads},
        },
    }
    event = {"item_id": items[1], settings.signals[0].column: 1, "play_time_ms": 5_200, "duration_ms": 20_000}
    feedback_example = {"request_id": "example", "shown": 2, "events": [event]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Multi-task fusion: the ranking service",
            "version": "1",
            "description": "Orders candidates by f(o | α) = Σ α·log(o + β) with weights α chosen for the "
            "user's state. What was answered is on disk before the answer is sent.",
        },
        "paths": {
            "/rank": {
                "post": _operation(
                    "rank",
                    "Order candidates",
                    {
                        JSON: {"schema": _reference("RankBody"), "example": rank_example},
                        BINARY: {
                            "schema": {"type": "string", "format": "binary", "description": _BINARY_BODY}
                        },
                    },
                    {
                        JSON: {"schema": rank_answer},
                        BINARY: {
                            "schema": {"type": "string", "format": "binary", "description": _BINARY_ANSWER}
                        },
                    },
                    {
                        "409": "request_id is another user's",
                        "503": "the decision could not be made durable, or it would have waited longer than "
                        "serving.queue_budget_ms; nothing was served, Retry-After says when to come back",
                    },
                )
            },
            "/feedback": {
                "post": {
                    **_operation(
                        "feedback",
                        "What the user did; it moves the state of the next request",
                        {JSON: {"schema": _reference("FeedbackBody"), "example": feedback_example}},
                        {JSON: {"schema": feedback_answer}},
                        {
                            "401": "no token, or a wrong one",
                            "404": "unknown request, and no user_id in the body",
                            "409": "the request is of another user than user_id",
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
                    "readyz", "Fit to take traffic", "text/plain", {"503": "not yet; the error says why"}
                )
            },
        },
        "components": {
            "schemas": schemas | {"Error": _object(["error"], error=_error(settings))},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _error(settings: Settings) -> dict[str, Any]:
    about = f"candidates.scores.{settings.heads[0].name}[0]: expected `float` >= 0.0"
    return {"type": "string", "description": "what is wrong, and where", "examples": [about]}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _operation(
    name: str, summary: str, bodies: dict[str, Any], answers: dict[str, Any], errors: dict[str, str]
) -> dict[str, Any]:
    reasons = {
        "400": "the body is wrong; the error names the field",
        "408": "the body did not arrive in time",
        "413": "the body is too large",
        "415": "a media type that is not taken here, or a compressed body",
        "429": "more requests than serving.rate_limit; Retry-After says when to come back",
        "500": "a fault of the service; its log has it under X-Request-ID",
        "504": "no answer within the time-out",
        **errors,
    }
    error = {JSON: {"schema": _reference("Error")}}
    named = {
        "X-Request-ID": {
            "description": "the caller's own when it sent a sane one, else a new one",
            "schema": {"type": "string"},
        }
    }
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": bodies},
        "responses": {
            "200": {"description": "done", "headers": named, "content": answers},
            **{
                status: {"description": text, "content": error, "headers": named}
                for status, text in sorted(reasons.items())
            },
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

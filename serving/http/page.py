"""What does a person see at ``GET /``? How it stands, and how each endpoint is called, out of the document.

A page of our own, without a script and without an address of anybody else's.
"""

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
h2 { margin: 2.5rem 0 0; font-size: 1.3rem; } h2 code { font-size: inherit; }
pre { background: #f4f4f4; padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1.2rem 0; width: 100%; overflow-wrap: anywhere; }
th, td { text-align: left; vertical-align: top; padding: .25rem 1.2rem .25rem 0; }
td:first-child { min-width: 12rem; } .errors td:first-child { min-width: 3rem; }
@media (max-width: 480px) { body { margin: 1rem auto; } td:first-child { min-width: 8rem; }
  th, td { padding-right: .5rem; font-size: .9rem; } }
td { border-bottom: 1px solid #ddd; }
.not { background: #fff3e0; padding: .6rem 1rem; }
"""
# nothing is fetched, framed or run, whatever a value may hold
POLICY = "; ".join(
    [
        *("default-src 'none'", "style-src 'unsafe-inline'"),
        *("frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"),
    ]
)


def page(document: Mapping[str, Any], status: Mapping[str, Any], unready: str | None, address: str) -> bytes:
    """HTML of the OpenAPI ``document``; ``status`` is what ``/status`` answers, ``unready`` why the worker is
    not fit to take traffic, ``address`` where the reader reached it."""
    title = escape(document["info"]["title"])
    parts = [
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{title}</title>",
        f'<meta name=viewport content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>{title}</h1><p>{escape(document['info']['description'])}</p>",
        *_standing(status, unready),
    ]
    reads = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method == "get":
                reads.append((f"GET {path}", operation["summary"]))
            else:
                parts += _operation(document, path, method, operation, address)
    parts += ["<h2>What is read</h2>", *_table(("path", "what it answers"), reads)]
    return "".join([*parts, "</body></html>"]).encode()


def _standing(status: Mapping[str, Any], unready: str | None) -> Iterable[str]:
    champion = status["champion"]
    serves = (
        f"policy {champion['version']}" if champion else "static weights: no policy has been promoted yet"
    )
    shares = ", ".join(f"{arm} {share:.3g}" for arm, share in status["shares"].items() if share)
    yield f"<p>Serves <b>{escape(serves)}</b>. Shares of the users: {escape(shares)}.</p>"
    if unready:
        yield f"<p class=not>Not ready: {escape(unready)}</p>"
    for what in ("refused", "challenger_refused", "shares_refused"):
        if status[what]:
            yield f"<p class=not>{escape(what.replace('_', ' '))}: {escape(status[what])}</p>"
    yield '<p>The same for programs: <a href="/docs.json">/docs.json</a> (OpenAPI 3.1), '
    yield '<a href="/status">/status</a>, <a href="/metrics">/metrics</a>, <a href="/readyz">/readyz</a>.</p>'


def _operation(
    document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any], address: str
) -> Iterable[str]:
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}.</p>"
    body = operation["requestBody"]["content"]["application/json"]
    token = ' -H "Authorization: Bearer $MTF_TOKEN"' if operation.get("security") else ""
    call = (
        f"curl {address}{path}{token} -H 'Content-Type: application/json' \\\n"
        f"  -d '{json.dumps(body['example'])}'"
    )
    yield f"<pre>{escape(call)}</pre>"
    if token:
        yield "<p><code>$MTF_TOKEN</code> is the service's token: that of its environment, else the file "
        yield "<code>serving/token</code> of its data folder.</p>"
    yield from _table(("field", "type", ""), _rows(document, body["schema"], "", "needed"))
    answers = operation["responses"]
    answer = answers["200"]["content"]["application/json"]["schema"]
    yield from _table(("answer", "type", ""), _rows(document, answer, "", ""))
    rows = [(status, answer["description"]) for status, answer in answers.items() if status != "200"]
    yield from _table(("error", "when"), rows, "errors")
    error = document["components"]["schemas"]["Error"]["properties"]["error"]["examples"][0]
    yield f"<p>An error is JSON, such as <code>{escape(json.dumps({'error': error}))}</code>.</p>"


def _rows(
    document: Mapping[str, Any], schema: Mapping[str, Any], before: str, required: str
) -> Iterable[tuple[str, ...]]:
    schema = _resolved(document, schema)
    for name, one in schema.get("properties", {}).items():
        needed = required if name in schema.get("required", ()) else ""
        about = "; ".join(filter(None, (needed, one.get("description", ""))))
        yield f"{before}{name}", _type(document, one), about
        inner = _resolved(document, one)
        if "items" in inner:
            inner, name = _resolved(document, inner["items"]), f"{name}[]"
        yield from _rows(document, inner, f"{before}{name}.", required)


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """The schema that is meant: what a reference names, or the one that is not null."""
    for one in (schema, *schema.get("anyOf", ())):
        if "$ref" in one:
            return document["components"]["schemas"][one["$ref"].rpartition("/")[2]]
        if "properties" in one or "items" in one:
            return one
    return schema


def _type(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(document, one) for one in schema["anyOf"]))
    if "$ref" in schema:
        return _type(document, _resolved(document, schema))
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        kind = f"list of {_type(document, schema.get('items', {}))}"
    limits = [schema.get("minimum"), schema.get("maximum")]
    if all(isinstance(limit, int | float) and abs(limit) < 2**53 for limit in limits):
        kind += f" {limits[0]:g} to {limits[1]:g}"
    return kind


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]], kind: str = "") -> Iterable[str]:
    yield f"<table class='{kind}'><tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        yield f"<tr><td><code>{escape(first)}</code></td>{cells}</tr>"
    yield "</table>"

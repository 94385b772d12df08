"""(c) A bare FastAPI endpoint: the same body by orjson or by the service's binary layout, k ids out.

No state, no policy, no log: static weights by eq. (1). ``uvicorn`` on this module.
"""

import orjson
from fastapi import FastAPI, Request, Response

from tests.benchmarks.peers.floor import top_by_static_weights

app = FastAPI()


@app.post("/rank")
async def rank(request: Request) -> Response:
    body = orjson.loads(await request.body())
    candidates = body["candidates"]
    items = top_by_static_weights(candidates["item_id"], candidates["scores"], body["k"])
    return Response(orjson.dumps({"items": items}), media_type="application/json")


@app.get("/readyz")
async def ready() -> Response:
    return Response(b"")

"""(c) A bare FastAPI endpoint: the same body by orjson or by the service's binary layout, k ids out.

No state, no policy, no log: static weights by eq. (1). ``uvicorn`` on this module.
"""

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from safetensors.numpy import load

from serving.http.requests import BINARY
from tests.benchmarks.peers.floor import top_by_static_weights

app = FastAPI()


@app.post("/rank")
async def rank(request: Request) -> Response:
    content = await request.body()
    if request.headers["content-type"] == BINARY:
        tensors = load(content)
        k = orjson.loads(tensors.pop("request").tobytes())["k"]
        items = tensors.pop("item_id").tolist()
        scores = {name.removeprefix("scores."): column.astype(np.float64) for name, column in tensors.items()}
    else:
        body = orjson.loads(content)
        items, scores, k = body["candidates"]["item_id"], body["candidates"]["scores"], body["k"]
    items = top_by_static_weights(items, scores, k)
    return Response(orjson.dumps({"items": items}), media_type="application/json")


@app.get("/readyz")
async def ready() -> Response:
    return Response(b"")

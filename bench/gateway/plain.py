"""What many write first: a proxy of FastAPI and httpx. For the comparison; it runs in the environment of the peers.

UPSTREAMS names the workers' addresses, separated by commas.
"""

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

upstreams = itertools.cycle(os.environ["UPSTREAMS"].split(","))
client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None, max_keepalive_connections=256))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await client.aclose()


app = FastAPI(lifespan=lifespan)


@app.post("/v1/{path:path}")
async def relay(path: str, request: Request) -> StreamingResponse:
    content = {"content-type": request.headers["content-type"]}
    asked = client.build_request("POST", f"{next(upstreams)}/v1/{path}", content=await request.body(), headers=content)
    answer = await client.send(asked, stream=True)
    kept = {name: answer.headers[name] for name in ("content-type", "content-length") if name in answer.headers}
    return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=None)

"""Server: the control protocol over HTTP on a Unix socket. Values in, values out; the data path is elsewhere."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from understudy.errors import DatastoreError, NotFound, ReplicaError, UnderstudyError
from understudy.mover.api import DigestRef, ReplicaRef
from understudy.mover.digest import DigestReader
from understudy.mover.drafts import store_of
from understudy.mover.operations import HANDLERS, Handler
from understudy.mover.protocol import decode, encode, path_of
from understudy.mover.state import Mover
from understudy.mover.work import error_fields

LOG = logging.getLogger(__name__)
JSON = "application/json"
STATUS_CODES = {"usage": 400, "not_found": 404, "refused": 409, "fenced": 409}


def make_app(mover: Mover) -> FastAPI:
    """The application that answers for ``mover``."""
    app = FastAPI(openapi_url=None)
    handlers = {path_of(request_type): (request_type, handler) for request_type, handler in HANDLERS.items()}

    @app.post("/v1/{name}")
    async def operate(name: str, request: Request) -> Response:
        found = handlers.get(f"/v1/{name}")
        if found is None:
            return _failure(NotFound(f"operation {name!r}", "this proxy does not know it", "use the same version"))
        return await run_in_threadpool(_operate, mover, *found, await request.body())

    @app.get("/v1/digests/source/{replica_id}/{disk}/{point}")
    def read_source(replica_id: str, disk: str, point: str) -> Response:
        return _file(lambda: mover.copies.path(DigestRef(replica_id, disk, point)), point)

    @app.put("/v1/digests/source/{replica_id}/{disk}/{point}")
    async def write_source(replica_id: str, disk: str, point: str, request: Request) -> Response:
        return await _take(mover, DigestRef(replica_id, disk, point), request)

    @app.get("/v1/digests/target")
    def read_target(kind: str, datastore: str, name: str, point: str, disk: str) -> Response:
        return _file(lambda: store_of(ReplicaRef(kind, datastore, name)).digest_path(point, disk), point)

    return app


def _operate(mover: Mover, request_type: type, handler: Handler, body: bytes) -> Response:
    try:
        return Response(encode(handler(mover, decode(request_type, body))), media_type=JSON)
    except Exception as exc:  # noqa: BLE001 - the border of the process: everything becomes an answer
        return _failure(exc)


def _failure(exc: Exception) -> Response:
    if not isinstance(exc, UnderstudyError):
        LOG.error("operation failed", exc_info=exc)
    fields = error_fields(exc)
    return Response(encode(fields), status_code=STATUS_CODES.get(fields.code, 500), media_type=JSON)


def _file(find: Callable[[], Path], point: str) -> Response:
    """The bytes of an intact digest file."""
    try:
        path = find()
        with DigestReader(path) as reader:
            if reader.header.point != point:
                # As good as damaged, and said so: who asks takes the other copy, or has it recomputed.
                raise ReplicaError(f"digest file {path}", f"it is of point {reader.header.point!r}")
        return FileResponse(path, media_type="application/octet-stream")
    except Exception as exc:  # noqa: BLE001 - the border of the process: everything becomes an answer
        return _failure(exc)


async def _take(mover: Mover, ref: DigestRef, request: Request) -> Response:
    """Take a digest file into the copies; it is checked before it is believed."""
    received: Path | None = None
    try:
        directory = (await run_in_threadpool(mover.copies.partial_path, ref)).parent
        with tempfile.NamedTemporaryFile(dir=directory, suffix=".digest.received", delete=False) as file:
            received = Path(file.name)
            async for chunk in request.stream():
                await run_in_threadpool(file.write, chunk)
        await run_in_threadpool(mover.copies.store, ref, received)
    except OSError as exc:
        return _failure(DatastoreError("receive a digest file", exc.strerror or str(exc)))
    except Exception as exc:  # noqa: BLE001 - the border of the process: everything becomes an answer
        return _failure(exc)
    finally:
        if received is not None:
            received.unlink(missing_ok=True)
    return Response(b"{}", media_type=JSON)

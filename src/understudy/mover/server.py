"""Server: the control protocol over HTTP on a Unix socket. Values in, values out; the data path is elsewhere."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from understudy.errors import DatastoreError, NotFound, ReplicaError, UnderstudyError
from understudy.mover import api
from understudy.mover.digest import DigestReader
from understudy.mover.drafts import store_of
from understudy.mover.operations import HANDLERS, operation
from understudy.mover.protocol import decode, encode, path_of
from understudy.mover.state import Mover
from understudy.mover.work import error_fields

LOG = logging.getLogger(__name__)
JSON = "application/json"
#: Longer than the controller keeps an idle connection: a connection that it still uses is then never closed here.
IDLE_TIMEOUT_S = 75
STATUS_CODES = {"usage": 400, "not_found": 404, "refused": 409, "fenced": 409}


def make_app(mover: Mover) -> Starlette:
    """The application that answers for ``mover``."""
    names = {path_of(name): name for name in HANDLERS}

    async def operate(request: Request) -> Response:
        found = names.get(request.url.path)
        if found is None:
            what = f"operation {request.path_params['name']!r}"
            return _failure(NotFound(what, "this proxy does not know it", "use the same version"))
        return await run_in_threadpool(_operate, mover, found, await request.body())

    def read_source(request: Request) -> Response:
        ref = api.DigestRef(**request.path_params)
        return _file(lambda: mover.copies.path(ref), ref.point)

    async def write_source(request: Request) -> Response:
        return await _take(mover, api.DigestRef(**request.path_params), request)

    def read_target(request: Request) -> Response:
        asked = request.query_params
        kind, datastore, name, point, disk = (
            asked.get(key, "") for key in ("kind", "datastore", "name", "point", "disk")
        )
        return _file(lambda: store_of(api.ReplicaRef(kind, datastore, name)).digest_path(point, disk), point)

    source_digest = "/v1/digests/source/{replica_id}/{disk}/{point}"
    return Starlette(routes=[
        Route("/v1/{name}", operate, methods=["POST"]),
        Route(source_digest, read_source, methods=["GET"]),
        Route(source_digest, write_source, methods=["PUT"]),
        Route("/v1/digests/target", read_target, methods=["GET"]),
    ])  # fmt: skip


def _operate(mover: Mover, name: str, body: bytes) -> Response:
    try:
        asked = operation(name)
        return Response(encode(asked.handler(mover, decode(asked.request_type, body))), media_type=JSON)
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


async def _take(mover: Mover, ref: api.DigestRef, request: Request) -> Response:
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

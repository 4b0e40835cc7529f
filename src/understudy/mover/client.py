"""Client: operations of a mover, called from the controller over its Unix socket or over mutual TLS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx

from understudy.errors import MoverError, UsageError, from_fields
from understudy.mover import api
from understudy.mover.api import DigestRef, ErrorFields, ReplicaRef
from understudy.mover.endpoints import Endpoint, causes
from understudy.mover.protocol import decode, encode, path_of

CONNECT_TIMEOUT_S = 10.0
#: Operations that are not long answer within this; the slowest are sweeps and digest checks of large replicas.
ANSWER_TIMEOUT_S = 600.0
#: How far work is, is answered at once: who does not has been cut off, or hangs, and the operator should know soon.
QUERY_TIMEOUT_S = 10.0
#: A service that is started again is back within this.
RESTART_S = 1.0

#: Requests that change nothing, so that they may be sent twice when nobody knows whether the first one arrived.
QUERIES = (api.About, api.DigestRef, api.HeldQuery, api.IdentityQuery, api.InspectReplica, api.ListCopies,
           api.ListReplicas, api.ListTagged, api.ProbeConversion, api.ProbeImage, api.ReadNvram, api.SurveyDatastore,
           api.WorkQuery)  # fmt: skip

Response = TypeVar("Response")


class MoverClient:
    """Calls to one mover; usable by several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        """:raises MoverError: if our credentials cannot be used."""
        self._endpoint = endpoint
        self._http = endpoint.client(httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def call(self, request: object, response_type: type[Response]) -> Response:
        """Carry out ``request`` and return its answer.

        :raises MoverError: if the mover does not answer.
        :raises UnderstudyError: what the operation raised there, as the same class.
        """
        path = path_of(type(request).__name__)
        with self._errors(path):
            answer = self._post(path, encode(request), _timeout(request), repeatable=isinstance(request, QUERIES))
            self._check(path, answer)
        try:
            return decode(response_type, answer.content)
        except UsageError as exc:
            raise MoverError(f"proxy at {self._endpoint}: {path}", exc.why, exc.todo) from exc

    def copy_digests_to(
        self, ref: ReplicaRef, digests: DigestRef, other: MoverClient,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Bring the target side digest file of a point, which this mover has, to ``other`` as its source side copy.

        :param on_progress: told how many bytes came, and of how many.
        :raises ReplicaError: if the file here is damaged.
        """
        path = "/v1/digests/target"
        where = {"kind": ref.kind, "datastore": ref.datastore, "name": ref.name, "point": digests.point,
                 "disk": digests.disk}
        extensions = self._endpoint.extensions
        with self._errors(path), self._http.stream("GET", path, params=where, extensions=extensions) as answer:
            if answer.is_error:
                answer.read()
            self._check(path, answer)
            other.store_digests(digests, _counted(answer, on_progress))

    def store_digests(self, ref: DigestRef, content: Iterator[bytes]) -> None:
        """Give the mover a source side digest copy.

        :raises ReplicaError: if it is damaged.
        """
        path = "/v1/digests/source/" + "/".join(quote(part, safe="") for part in (ref.replica_id, ref.disk, ref.point))
        with self._errors(path):
            self._check(path, self._http.put(path, content=content, extensions=self._endpoint.extensions))

    def _post(self, path: str, content: bytes, timeout: httpx.Timeout, repeatable: bool) -> httpx.Response:
        """Send once; once more if it surely did not arrive, or if it may be sent twice."""
        try:
            return self._http.post(path, content=content, extensions=self._endpoint.extensions, timeout=timeout)
        except httpx.ConnectError as exc:
            if not any(isinstance(cause, ConnectionRefusedError) for cause in causes(exc)):
                raise
            time.sleep(RESTART_S)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            # A connection that the mover closed when it ended, or that was cut on the way.
            if not repeatable:
                raise
        return self._http.post(path, content=content, extensions=self._endpoint.extensions, timeout=timeout)

    def _check(self, path: str, answer: httpx.Response) -> None:
        if answer.is_error:
            try:
                fields = decode(ErrorFields, answer.content)
            except UsageError as exc:
                why = f"status {answer.status_code} without a reason"
                raise MoverError(f"proxy at {self._endpoint}: {path}", why, "see its log") from exc
            raise from_fields(fields.code, fields.what, fields.why, fields.todo)

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        what = f"proxy at {self._endpoint}: {path}"
        self._endpoint.check(what)
        try:
            yield
        except httpx.HTTPError as exc:
            raise self._endpoint.error(what, exc) from exc


def _counted(answer: httpx.Response, on_progress: Callable[[int, int], None] | None) -> Iterator[bytes]:
    """The bytes of an answer that is still coming."""
    done, whole = 0, int(answer.headers.get("content-length", 0))
    for chunk in answer.iter_bytes():
        yield chunk
        done += len(chunk)
        if on_progress is not None:
            on_progress(done, whole)


def _timeout(request: object) -> httpx.Timeout:
    """How long to wait for the answer to a request."""
    answer_s = request.wait_s + QUERY_TIMEOUT_S if isinstance(request, api.WorkQuery) else ANSWER_TIMEOUT_S
    return httpx.Timeout(answer_s, connect=CONNECT_TIMEOUT_S)

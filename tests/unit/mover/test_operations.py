"""The operations of a mover are found when they are asked for; so are the values of the control protocol."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any, get_type_hints

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from understudy.mover import api
from understudy.mover.operations import HANDLERS, operation
from understudy.mover.protocol import decode, path_of
from understudy.mover.server import make_app
from understudy.mover.state import Mover


@pytest.mark.parametrize("name", HANDLERS)
def test_each_request_is_answered_by_a_handler_of_its_type(name: str) -> None:
    found = operation(name)
    assert found.request_type is getattr(api, name)
    hints = get_type_hints(found.handler)
    assert list(inspect.signature(found.handler).parameters) == [*hints][:2]
    assert list(hints.values())[:2] == [Mover, found.request_type]
    assert hints["return"].__name__ in api.__all__


@pytest.mark.parametrize("name", api.__all__)
def test_each_value_of_the_protocol_is_where_it_is_looked_for(name: str) -> None:
    value = getattr(api, name)
    assert value.__name__ == name
    assert value.__module__.startswith(f"{api.__name__}.")


def test_there_is_no_other_value() -> None:
    assert not hasattr(api, "Abuot")


def ask(app: Starlette, path: str) -> httpx.Response:
    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mover") as client:
            return await client.post(path, content=b"{}")

    return anyio.run(post)


def test_an_operation_that_cannot_be_loaded_fails_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HANDLERS, "ProbeConversion", "no_such_module:probe_conversion")
    mover: Any = SimpleNamespace()
    answer = ask(make_app(mover), path_of("ProbeConversion"))
    why = "internal error: ModuleNotFoundError: No module named 'understudy.mover.no_such_module'"
    assert (answer.status_code, decode(api.ErrorFields, answer.content)) == (
        500, api.ErrorFields("error", "proxy", why, "see its log"),
    )  # fmt: skip


def test_an_unknown_operation_is_refused() -> None:
    mover: Any = SimpleNamespace()
    answer = ask(make_app(mover), path_of("CheckNothing"))
    assert (answer.status_code, decode(api.ErrorFields, answer.content).code) == (404, "not_found")

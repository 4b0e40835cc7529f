"""A pyVmomi session that closes its connections, whatever happens, and reads properties in the two habits that hold.

The habits: properties are asked of the property collector by their names, never by pyVmomi's attribute getters (the
simulator panics over a property that is unset), and a task is never read as a whole (its entity may have another type
than pyVmomi expects).
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pyVmomi import SoapStubAdapter, vim, vmodl
from pyVmomi.VmomiSupport import versionMap

TASK_TIMEOUT_S = 300.0
#: The version of the API that the simulator speaks.
VERSION = versionMap["vim25/6.5"]


class Client:
    """A session, logged in."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub
        self.service = vim.ServiceInstance("ServiceInstance", stub)
        self.content: Any = self.service.RetrieveContent()

    def properties(self, item: Any, *names: str) -> dict[str, Any]:
        """The properties of one object that are set, by name."""
        found = self.collect([item], type(item), names)
        return found[item._moId]

    def collect(self, items: list[Any], kind: Any, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """The same of many objects, by moref."""
        query = vmodl.query.PropertyCollector
        spec = query.FilterSpec(
            objectSet=[query.ObjectSpec(obj=item) for item in items],
            propSet=[query.PropertySpec(type=kind, pathSet=list(names))],
        )
        return self._pages(spec, None)

    def inventory(self, kind: Any, *names: str, page: int | None = None) -> dict[str, dict[str, Any]]:
        """Properties of all objects of `kind`, by moref, `page` objects an answer."""
        query = vmodl.query.PropertyCollector
        view = self.content.viewManager.CreateContainerView(self.content.rootFolder, [kind], True)
        walk = query.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
        spec = query.FilterSpec(
            objectSet=[query.ObjectSpec(obj=view, skip=True, selectSet=[walk])],
            propSet=[query.PropertySpec(type=kind, pathSet=list(names))],
        )
        try:
            return self._pages(spec, page)
        finally:
            view.Destroy()

    def named(self, kind: Any, name: str) -> Any:
        """The object of `kind` that has `name`."""
        for moref, found in self.inventory(kind, "name").items():
            if found["name"] == name:
                return kind(moref, self.stub)
        raise LookupError(f"no {kind.__name__} has the name {name!r}")

    def wait(self, task: Any) -> Any:
        """The task's result, when it has ended well; its fault is raised."""
        deadline = time.monotonic() + TASK_TIMEOUT_S
        while time.monotonic() < deadline:
            info = self.properties(task, "info.state", "info.error", "info.result")
            if info["info.state"] == vim.TaskInfo.State.error:
                # A LocalizedMethodFault or, when it comes as any type, the fault itself: pyVmomi decides.
                raise getattr(info["info.error"], "fault", info["info.error"])
            if info["info.state"] == vim.TaskInfo.State.success:
                return info.get("info.result")
            time.sleep(0.02)
        raise TimeoutError(f"task {task._moId} did not end")

    def _pages(self, spec: Any, page: int | None) -> dict[str, dict[str, Any]]:
        collector = self.content.propertyCollector
        found: dict[str, dict[str, Any]] = {}
        answer = collector.RetrievePropertiesEx([spec], vmodl.query.PropertyCollector.RetrieveOptions(maxObjects=page))
        while answer is not None:
            for entry in answer.objects:
                found[entry.obj._moId] = {prop.name: prop.val for prop in entry.propSet}
            if not answer.token:
                break
            answer = collector.ContinueRetrievePropertiesEx(answer.token)
        return found


@contextmanager
def connected(url: str, user: str, password: str) -> Iterator[Client]:
    """A session with the server at `url`, whose certificate is not checked; it is logged out at the end."""
    with _stub(url) as stub:
        client = Client(stub)
        client.content.sessionManager.Login(user, password, None)
        try:
            yield client
        finally:
            # The test may have ended the session, or the server.
            with suppress(vim.fault.NotAuthenticated, OSError):
                client.content.sessionManager.Logout()


@contextmanager
def _stub(url: str) -> Iterator[Any]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    stub = SoapStubAdapter(url=url, version=VERSION, sslContext=context)
    try:
        yield stub
    finally:
        stub.DropConnections()

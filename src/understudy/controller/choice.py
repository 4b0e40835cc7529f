"""Choice of proxies: which pairs may carry a task, and which of them is the best one now. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from understudy.errors import MoverError
from understudy.model.job import Host, Job, Proxy, ProxyKind
from understudy.model.transfer import TransportMode

_THIS_MACHINE = (None, "", "localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Route:
    """A way for the data of a task: names of the source and the target proxy, and how the former reaches the disks."""

    source: str
    target: str
    transport: TransportMode = TransportMode.LOCAL


def is_this_machine(host: Host) -> bool:
    """Whether a host's libvirt runs where the controller does, by its URI."""
    return urlsplit(host.uri).hostname in _THIS_MACHINE


def possible_routes(
    job: Job, source: Host, target: Host, proxies: Sequence[Proxy], reachable: Callable[[str], bool],
    library_problem: Callable[[str], str] = lambda _: "",
) -> tuple[Route, ...]:
    """The routes that may carry tasks of ``job``: never empty, and none is better but for its load.

    :param reachable: whether the proxy of that name answers; asked only of those that the choice would fall on.
    :param library_problem: why that proxy cannot use the disk library of the source host; empty if it can.
    :raises MoverError: if a proxy that the job fixes, or every one that could be chosen, does not answer.
    """
    by_name = {proxy.name: proxy for proxy in proxies}
    if job.source_proxy:
        readers = _fixed(by_name[job.source_proxy], reachable)
    elif not source.by_library:
        readers = _first_tier(f"source proxy for host {source.name!r}", reachable,
                              [proxy for proxy in proxies if proxy.host == source.name],
                              [proxy for proxy in proxies if _is_local(proxy, source)],
                              proxies)  # fmt: skip
    if job.target_proxy:
        writers = _fixed(by_name[job.target_proxy], reachable)
    else:
        writers = target_proxies(target, proxies, reachable)
    if source.by_library and not job.source_proxy:
        readers = _library_readers(source, writers, proxies, reachable, library_problem)
    return tuple(Route(reader.name, writer.name, transport(reader, source)) for reader in readers for writer in writers)


def _library_readers(
    source: Host, writers: Sequence[Proxy], proxies: Sequence[Proxy], reachable: Callable[[str], bool],
    library_problem: Callable[[str], str],
) -> list[Proxy]:
    """The proxies that can use the disk library, wherever they are; one that writes too spares the wire."""
    problems: dict[str, str] = {}
    for tier in (writers, [proxy for proxy in proxies if proxy not in writers]):
        answering = [proxy for proxy in tier if reachable(proxy.name)]
        problems |= {proxy.name: library_problem(proxy.name) for proxy in answering}
        found = [proxy for proxy in answering if not problems[proxy.name]]
        if found:
            return found
    raise MoverError(f"source proxy for host {source.name!r}", "no proxy that answers can use its disk library: "
                     + "; ".join(f"{name}: {problem}" for name, problem in problems.items()),
                     f"see 'understudy host check {source.name}'")  # fmt: skip


def target_proxies(target: Host, proxies: Sequence[Proxy], reachable: Callable[[str], bool]) -> list[Proxy]:
    """The proxies that may write to a datastore of ``target``, when nobody fixed one.

    Without one on that host the controller's machine writes: it has the datastore mounted.

    :raises MoverError: if none of them answers.
    """
    return _first_tier(f"target proxy for host {target.name!r}", reachable,
                       [proxy for proxy in proxies if proxy.host == target.name],
                       [proxy for proxy in proxies if _serves_machine(proxy)])  # fmt: skip


def host_proxies(host: Host, proxies: Sequence[Proxy], reachable: Callable[[str], bool]) -> list[Proxy]:
    """The proxies that see the files of a host; none if none was added for it.

    :raises MoverError: if none of those that do answers.
    """
    there = [proxy for proxy in proxies if transport(proxy, host) is TransportMode.LOCAL]
    return _first_tier(f"proxy on host {host.name!r}", reachable, there) if there else []


def library_readers(source: Host, proxies: Sequence[Proxy]) -> tuple[Proxy, ...]:
    """The proxies among which the reader of a host with a disk library is chosen: those added for it, else all."""
    return tuple(proxy for proxy in proxies if proxy.host == source.name) or tuple(proxies)


def transport(reader: Proxy, source: Host) -> TransportMode:
    """How a proxy reaches the disks of a host."""
    if source.by_library:
        return TransportMode.LIBRARY
    is_there = reader.host == source.name or _is_local(reader, source)
    return TransportMode.LOCAL if is_there else TransportMode.NETWORK


def best_route(routes: Iterable[Route], load: Callable[[str], float]) -> Route:
    """The route of least load; one that needs no wire comes before all others.

    :param load: share of a proxy's task slots that is in use.
    """
    return min(routes, key=lambda route: (
        route.source != route.target, load(route.source), load(route.target), route.source, route.target
    ))  # fmt: skip


def _serves_machine(proxy: Proxy) -> bool:
    return proxy.kind is ProxyKind.CHILD and not proxy.host


def _is_local(proxy: Proxy, host: Host) -> bool:
    return _serves_machine(proxy) and is_this_machine(host)


def _fixed(proxy: Proxy, reachable: Callable[[str], bool]) -> list[Proxy]:
    if not reachable(proxy.name):
        raise MoverError(f"proxy {proxy.name!r}", "it does not answer, and the job names it",
                         f"see 'understudy proxy check {proxy.name}', or let the job choose its proxies")
    return [proxy]


def _first_tier(what: str, reachable: Callable[[str], bool], *tiers: Sequence[Proxy]) -> list[Proxy]:
    """The proxies that answer, of the first tier that has any."""
    for tier in tiers:
        found = [proxy for proxy in tier if reachable(proxy.name)]
        if found:
            return found
    raise MoverError(what, "no proxy that could do it answers", "see 'understudy proxy list'")

"""The cable between the lab hosts: reach, rate, cut, and nothing of it in the machine's own network."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from understudy.lab.commands import run
from understudy.lab.errors import LabError
from understudy.lab.host_process import HostProcess
from understudy.lab.hosts import LabHost
from understudy.lab.lab import Lab

pytestmark = pytest.mark.system

MIB = 1 << 20

# Tells each MiB that it has received on one connection, with the seconds since the first byte.
_RECEIVER = """
import socket, sys, time
listener = socket.create_server((sys.argv[1], 0))
print("port", listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
first, total, told = None, 0, 0
while data := connection.recv(1 << 16):
    first = first or time.monotonic()
    total += len(data)
    while told < total >> 20:
        told += 1
        print("mib", told, time.monotonic() - first, "end", flush=True)
connection.sendall(b"all")
"""
# Each word is a number of MiB to send, or a file to wait for. Ends when all has arrived.
_SENDER = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
for part in sys.argv[3:]:
    if part.startswith("/"):
        import os, time
        print("waiting", flush=True)
        while not os.path.exists(part):
            time.sleep(0.01)
    else:
        connection.sendall(bytes(int(part) << 20))
connection.shutdown(socket.SHUT_WR)
print(connection.recv(3).decode(), flush=True)
"""


def _python(host: LabHost, log: Path, script: str, *words: object) -> HostProcess:
    return host.start_process([sys.executable, "-c", script, *map(str, words)], log=log)


def _seconds_for(lab: Lab, directory: Path, mib: int) -> float:
    """How long it takes from the first byte until all of so many MiB have crossed the link."""
    receiver = _python(lab.beta, directory / "receiver.log", _RECEIVER, lab.link.beta_address)
    port = receiver.await_line("port").split()[1]
    sender = _python(lab.alpha, directory / "sender.log", _SENDER, lab.link.beta_address, port, mib)
    seconds = float(receiver.await_line(f"mib {mib} ").split()[2])
    assert sender.wait() == receiver.wait() == 0
    return seconds


def test_both_hosts_reach_each_other_and_the_machine_sees_nothing_of_it(linked_lab: Lab, tmp_path: Path) -> None:
    link = linked_lab.link
    ends = [(linked_lab.alpha, link.alpha_address), (linked_lab.beta, link.beta_address)]
    for (there, address), (here, _) in (ends, reversed(ends)):
        log = tmp_path / f"{there.name}.log"
        receiver = _python(there, log, _RECEIVER, address)
        port = receiver.await_line("port").split()[1]
        assert here.run([sys.executable, "-c", _SENDER, address, port, "1"]) == "all\n"
        assert receiver.wait() == 0
    for network in (run(["ip", "-o", "link"]), run(["ip", "-o", "address"]), run(["ip", "route"])):
        assert "lablink" not in network
        assert "10.213.77" not in network


def test_the_link_has_no_ipv6(linked_lab: Lab) -> None:
    for host in linked_lab.hosts:
        assert "inet6" not in host.run(["ip", "address", "show", "dev", "lablink"])


def test_a_lab_opened_without_a_link_has_none(lab: Lab) -> None:
    with pytest.raises(LabError, match="linked=True"):
        assert lab.link
    assert "lablink" not in lab.alpha.run(["ip", "-o", "link"])


def test_a_rate_holds_and_is_lifted_again(linked_lab: Lab, tmp_path: Path) -> None:
    # 2 MiB at 20 Mbit/s: 0.84 s and some overhead.
    linked_lab.link.set_rate(20_000_000)
    (tmp_path / "slow").mkdir()
    assert 0.6 < _seconds_for(linked_lab, tmp_path / "slow", 2) < 3
    linked_lab.link.set_rate(None)
    assert _seconds_for(linked_lab, tmp_path, 2) < 0.6


def test_the_rate_changes_while_data_flows(linked_lab: Lab, tmp_path: Path) -> None:
    link = linked_lab.link
    link.set_rate(8_000_000)
    receiver = _python(linked_lab.beta, tmp_path / "receiver.log", _RECEIVER, link.beta_address)
    port = receiver.await_line("port").split()[1]
    # 64 MiB at 8 Mbit/s would take more than a minute.
    sender = _python(linked_lab.alpha, tmp_path / "sender.log", _SENDER, link.beta_address, port, 64)
    receiver.await_line("mib 1 ")
    link.set_rate(1_000_000_000)
    assert sender.wait(30) == 0
    link.set_rate(None)
    assert receiver.wait() == 0


def test_a_connection_outlives_a_cut_and_data_sent_meanwhile_arrives_after_it(linked_lab: Lab, tmp_path: Path) -> None:
    link = linked_lab.link
    link.set_rate(400_000_000)
    receiver = _python(linked_lab.beta, tmp_path / "receiver.log", _RECEIVER, link.beta_address)
    port = receiver.await_line("port").split()[1]
    go = tmp_path / "go"
    sender = _python(linked_lab.alpha, tmp_path / "sender.log", _SENDER, link.beta_address, port, 1, go, 8)
    sender.await_line("waiting")
    receiver.await_line("mib 1 ")
    link.cut()
    go.touch()
    time.sleep(1)
    assert "mib 2 " not in receiver.log.read_text()
    assert sender.alive
    assert receiver.alive
    link.restore()
    receiver.await_line("mib 9 ")
    assert sender.wait() == receiver.wait() == 0
    assert all("tbf" in host.run(["tc", "qdisc", "show", "dev", "lablink"]) for host in linked_lab.hosts)
    link.set_rate(None)


def test_a_cut_link_gives_no_answer_to_a_new_connection(linked_lab: Lab) -> None:
    link = linked_lab.link
    script = "import socket, sys; socket.create_connection((sys.argv[1], 9), timeout=0.5)"
    ends: list[tuple[LabHost, str]] = [(linked_lab.alpha, link.beta_address), (linked_lab.beta, link.alpha_address)]
    link.cut()
    try:
        for host, address in ends:
            with pytest.raises(LabError, match="TimeoutError"):
                host.run([sys.executable, "-c", script, address])
    finally:
        link.restore()
    for host, address in ends:
        with pytest.raises(LabError, match="ConnectionRefusedError"):
            host.run([sys.executable, "-c", script, address])


def test_a_delay_relay_on_a_host_makes_the_link_a_long_one(linked_lab: Lab, tmp_path: Path) -> None:
    link = linked_lab.link
    receiver = _python(linked_lab.beta, tmp_path / "receiver.log", _RECEIVER, link.beta_address)
    target = f"{link.beta_address}:{receiver.await_line('port').split()[1]}"
    options = ["--listen", "127.0.0.1:0", "--to", target, "--delay-ms", "50"]
    argv = [sys.executable, "-m", "understudy.lab.delay", *options]
    relay = linked_lab.alpha.start_process(argv, log=tmp_path / "relay.log")
    port = relay.await_line("ready").split()[1]
    started = time.monotonic()
    assert linked_lab.alpha.run([sys.executable, "-c", _SENDER, "127.0.0.1", port, "1"]) == "all\n"
    # Two round trips: the connection, and the data with its answer.
    assert time.monotonic() - started >= 0.2
    relay.terminate()
    assert relay.wait() == -signal.SIGTERM

"""Both ways into a guest, by one suite: an agent that speaks the documented protocol, and a real SSH server."""

from __future__ import annotations

import base64
import getpass
import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import paramiko
import pytest

from understudy.errors import Cancelled, GuestError
from understudy.guests.qga import NEEDED, PIECE, QgaTransport
from understudy.guests.ssh import Secret, SshAccess, SshTransport, fingerprint, presented_host_key
from understudy.guests.transport import OUTPUT_LIMIT, Transport

SSHD = Path("/usr/sbin/sshd")
Open = Callable[[], Transport]


@dataclass
class FakeAgent:
    """A guest agent that works on this machine."""

    blocked: tuple[str, ...] = ()
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    files: dict[int, Any] = field(default_factory=dict)
    pieces: list[int] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1000))

    def __call__(self, command: str, arguments: Mapping[str, Any], timeout_s: float) -> Any:
        assert timeout_s >= 1
        if command in self.blocked:
            raise GuestError(f"guest agent: {command}", f"Command {command} has been disabled")
        return getattr(self, command.replace("-", "_"))(**{key.replace("-", "_"): value
                                                           for key, value in arguments.items()})

    def guest_info(self) -> Any:
        return {"version": "7.2", "supported_commands": [
            {"name": name, "enabled": name not in self.blocked, "success-response": True}
            for name in (*NEEDED, "guest-get-osinfo")]}

    def guest_get_osinfo(self) -> Any:
        return {"id": "debian", "name": "Debian GNU/Linux", "kernel-release": "6.1"}

    def guest_exec(self, path: str, arg: list[str], capture_output: bool = False, input_data: str = "") -> Any:
        try:
            process = subprocess.Popen([path, *arg], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE)  # fmt: skip
        except OSError as exc:
            raise GuestError("guest agent: guest-exec", f"Failed to execute child process: {exc}") from exc
        assert process.stdin is not None
        process.stdin.write(base64.b64decode(input_data))
        process.stdin.close()
        process.stdin = None
        self.running[process.pid] = process
        return {"pid": process.pid}

    def guest_exec_status(self, pid: int) -> Any:
        process = self.running[pid]
        # As the real one it keeps a process in mind until it has told its end.
        try:
            out, err = process.communicate(timeout=0.05)
        except subprocess.TimeoutExpired:
            return {"exited": False}
        ended = {"signal": -process.returncode} if process.returncode < 0 else {"exitcode": process.returncode}
        del self.running[pid]
        encoded = {name: base64.b64encode(text).decode()
                   for name, text in (("out-data", out), ("err-data", err)) if text}
        return {"exited": True, **ended, **encoded}

    def guest_file_open(self, path: str, mode: str) -> Any:
        handle = next(self.numbers)
        self.files[handle] = Path(path).open(mode + "b")  # noqa: SIM115
        return handle

    def guest_file_write(self, handle: int, buf_b64: str) -> Any:
        data = base64.b64decode(buf_b64)
        self.pieces.append(len(data))
        return {"count": self.files[handle].write(data), "eof": False}

    def guest_file_close(self, handle: int) -> Any:
        self.files.pop(handle).close()
        return {}

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.communicate()
        for file in self.files.values():
            file.close()


@dataclass
class Sshd:
    """An SSH server of ours on the loopback, with a host key of its own."""

    place: Path
    port: int
    access: SshAccess
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    if not SSHD.exists():
        pytest.skip("openssh-server is not installed")
    place = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (place / "config").write_text(f"""Port {port}
ListenAddress 127.0.0.1
HostKey {place}/host
AuthorizedKeysFile {place}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication yes
PermitRootLogin yes
""")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # the server insists on it
    process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(place / "config")], stderr=subprocess.DEVNULL)
    key = " ".join((place / "host.pub").read_text().split()[:2])
    secret = Secret((place / "user").read_text())
    try:
        _await_port(port)
        yield Sshd(place, port, SshAccess(f"127.0.0.1:{port}", getpass.getuser(), None, secret, key), process)
    finally:
        process.terminate()
        process.wait()


def _await_port(port: int) -> None:
    end = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < end, "sshd does not listen"
        time.sleep(0.05)


@pytest.fixture(params=["qga", "ssh"])
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    agent = FakeAgent()
    opened: Transport
    opened = QgaTransport(agent) if request.param == "qga" else SshTransport(request.getfixturevalue("sshd").access)
    yield opened
    opened.close()
    agent.close()


# --- every transport --------------------------------------------------------------------------------------------------


def test_a_program_gets_its_arguments_and_input_as_they_are(transport: Transport) -> None:
    words = ["a b", "$HOME", "'\"", "*", ""]
    done = transport.run(["/bin/sh", "-c", 'cat; printf "<%s>" "$@"; echo no >&2; exit 7', "sh", *words], 10, b"in\0")
    assert done.status == 7
    assert done.stdout == b"in\0" + b"".join(f"<{word}>".encode() for word in words)
    assert done.stderr == b"no\n"


def test_a_program_that_does_not_end_is_given_up_at_its_time_limit(transport: Transport, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(GuestError, match=r"did not end within 0\.5 s"):
        transport.run(["/bin/sleep", "30"], 0.5)
    assert time.monotonic() - started < 5


def test_of_two_programs_the_second_one_runs_when_it_is_told(transport: Transport, tmp_path: Path) -> None:
    said = tmp_path / "said"
    first = ["/bin/sh", "-c", 'echo "it\'s first"; echo oh >&2; exit 3']
    done, finish = transport.run_pair(first, ["/bin/sh", "-c", 'echo second; touch "$0"; exit 4', str(said)], 10)
    assert (done.status, done.stdout, done.stderr) == (3, b"it's first\n", b"oh\n")
    time.sleep(0.1)
    assert not said.exists()
    done = finish(10)
    assert (done.status, done.stdout) == (4, b"second\n")
    assert said.exists()


def test_of_two_programs_the_first_one_has_a_time_limit(transport: Transport) -> None:
    started = time.monotonic()
    with pytest.raises(GuestError):
        transport.run_pair(["/bin/sleep", "60"], ["true"], 0.3)
    assert time.monotonic() - started < 10


def test_the_last_output_is_not_lost(transport: Transport) -> None:
    done = transport.run(["/bin/sh", "-c", "(sleep 0.05; echo last) & echo first"], 10)
    assert done.stdout == b"first\nlast\n"


def test_output_is_bounded(transport: Transport) -> None:
    done = transport.run(["/bin/sh", "-c", f"head -c {OUTPUT_LIMIT * 2} /dev/zero"], 20)
    assert (done.status, len(done.stdout)) == (0, OUTPUT_LIMIT)


def test_a_wish_to_cancel_is_heard_while_a_program_runs(transport: Transport) -> None:
    def check() -> None:
        raise Cancelled()

    with pytest.raises(Cancelled):
        transport.run(["/bin/sleep", "30"], 20, check=check)


def test_a_file_is_put_whole_with_its_mode(transport: Transport, tmp_path: Path) -> None:
    path = tmp_path / "a file"
    path.write_bytes(b"old" * PIECE)
    content = bytes(range(256)) * (PIECE // 256 * 2 + 3)
    transport.put(str(path), content, 0o700, 20)
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_file_that_cannot_be_written_is_an_error(transport: Transport, tmp_path: Path) -> None:
    with pytest.raises((GuestError, OSError)):
        transport.put(str(tmp_path / "no" / "file"), b"", 0o600, 10)


# --- the agent --------------------------------------------------------------------------------------------------------


def test_files_go_to_the_agent_in_pieces_that_libvirt_can_send(tmp_path: Path) -> None:
    agent = FakeAgent()
    QgaTransport(agent).put(str(tmp_path / "f"), bytes(2 * PIECE + 5), 0o600, 10)
    assert agent.pieces == [PIECE, PIECE, 5]


def test_a_program_that_is_given_up_is_dead_and_forgotten_by_the_agent() -> None:
    agent = FakeAgent()
    with pytest.raises(GuestError, match="did not end"):
        QgaTransport(agent).run(["/bin/sleep", "30"], 0.3)
    assert agent.running == {}


@pytest.mark.parametrize("broken", ["guest-file-write", "guest-exec", "guest-file-close"])
def test_a_file_that_could_not_be_written_is_an_error_and_closed(tmp_path: Path, broken: str) -> None:
    agent = FakeAgent()
    transport = QgaTransport(agent)
    agent.blocked = (broken,)
    with pytest.raises(GuestError, match=broken):
        transport.put(str(tmp_path / "f"), b"content", 0o600, 10)
    assert list(agent.files) == ([1000] if broken == "guest-file-close" else [])
    agent.close()


def test_an_agent_that_may_not_run_programs_says_so_at_once() -> None:
    with pytest.raises(GuestError, match=r"does not allow guest-exec, guest-file-open; allow it"):
        QgaTransport(FakeAgent(blocked=("guest-exec", "guest-file-open")))


@pytest.mark.parametrize("answer", [None, [], {}, {"supported_commands": 3}, {"supported_commands": [1]}])
def test_an_agent_that_answers_nonsense_is_an_error(answer: object) -> None:
    with pytest.raises(GuestError):
        QgaTransport(lambda _command, _arguments, _timeout_s: answer)


# --- SSH --------------------------------------------------------------------------------------------------------------


def test_the_key_that_the_guest_shows_is_read_without_logging_in(sshd: Sshd) -> None:
    assert presented_host_key(sshd.access.address) == sshd.access.host_key
    shown = subprocess.run(["ssh-keygen", "-lf", str(sshd.place / "host.pub")], capture_output=True, text=True,
                           check=True).stdout  # fmt: skip
    assert fingerprint(sshd.access.host_key) in shown


@pytest.mark.parametrize("known", ["none", "other"])
def test_an_unknown_or_changed_host_key_is_refused_with_its_fingerprint(sshd: Sshd, known: str) -> None:
    other = " ".join((sshd.place / "other.pub").read_text().split()[:2]) if known == "other" else ""
    why = "is not the one that was accepted" if other else "is not known"
    with pytest.raises(GuestError, match=why) as refused:
        SshTransport(replace(sshd.access, host_key=other))
    assert fingerprint(sshd.access.host_key) in str(refused.value)
    assert "--accept-host-key" in str(refused.value)


def test_a_wrong_key_or_password_is_refused(sshd: Sshd) -> None:
    wrong = Secret((sshd.place / "other").read_text())
    for access in (replace(sshd.access, key=wrong), replace(sshd.access, key=None, password=Secret("wrong"))):
        with pytest.raises(GuestError, match="the guest refused the user"):
            SshTransport(access)


def test_what_is_no_key_is_refused(sshd: Sshd) -> None:
    with pytest.raises(GuestError, match="private key is not"):
        SshTransport(replace(sshd.access, key=Secret("words")))


def test_a_server_that_never_speaks_is_not_waited_for_long() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        access = SshAccess(f"127.0.0.1:{silent.getsockname()[1]}", "root", Secret("x"), None, "")
        started = time.monotonic()
        with pytest.raises(GuestError):
            SshTransport(access, timeout_s=0.5)
        assert time.monotonic() - started < 10


def test_the_second_program_needs_no_new_entrance_and_runs_when_the_connection_is_lost(
    sshd: Sshd, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    transport = SshTransport(sshd.access)
    transport.run_pair(["true"], ["touch", str(said)], 10)
    transport.close()
    deadline = time.monotonic() + 20
    while not said.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    transport = SshTransport(sshd.access)
    with pytest.raises(GuestError, match="no such command"):
        transport.run_pair(["sh", "-c", 'echo "no such command" >&2; kill -9 $PPID'], ["true"], 10)
    transport.close()


def test_what_a_program_leaves_running_is_not_waited_for(sshd: Sshd) -> None:
    transport = SshTransport(sshd.access)
    started = time.monotonic()
    done = transport.run(["/bin/sh", "-c", "sleep 5 & echo said"], 20)
    assert (done.status, done.stdout) == (0, b"said\n")
    assert time.monotonic() - started < 3
    transport.close()


def test_a_connection_that_is_lost_meanwhile_is_an_error(sshd: Sshd) -> None:
    transport = SshTransport(sshd.access)
    with pytest.raises(GuestError, match="connection was lost"):
        transport.run(["/bin/sh", "-c", "kill -9 $PPID; sleep 5"], 20)
    transport.close()


def test_a_windows_guest_is_refused_with_the_way_that_works() -> None:
    with windows_ssh_server() as access, pytest.raises(GuestError, match=r"Windows guest.*--transport qga"):
        SshTransport(access)


@contextmanager
def windows_ssh_server() -> Iterator[SshAccess]:
    """An SSH server that lets anybody in, and presents itself as that of Windows does."""
    host_key = paramiko.RSAKey.generate(2048)

    class LetIn(paramiko.ServerInterface):
        def check_auth_password(self, username: str, password: str) -> int:
            return paramiko.common.AUTH_SUCCESSFUL

        def get_allowed_auths(self, username: str) -> str:
            return "password"

    def serve(listener: socket.socket) -> None:
        link = paramiko.Transport(listener.accept()[0])
        links.append(link)
        link.local_version = "SSH-2.0-OpenSSH_for_Windows_9.5"
        link.add_server_key(host_key)
        link.start_server(server=LetIn())

    links: list[paramiko.Transport] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        known = f"{host_key.get_name()} {host_key.get_base64()}"
        yield SshAccess(f"127.0.0.1:{listener.getsockname()[1]}", "Administrator", Secret("x"), None, known)
        server.join(10)
        for link in links:
            link.close()


def test_secrets_are_not_shown(sshd: Sshd) -> None:
    assert "PRIVATE" not in repr(sshd.access)
    assert str(Secret("x")) == repr(Secret("x")) == "***"

"""A private libvirt host: its own libvirtd, its own guests, reached from outside by one socket.

Nothing of the machine's own libvirt is used or touched: the private libvirtd sees the host's directories in place of
/etc/libvirt, /var/lib/libvirt, /var/cache/libvirt, /var/log/libvirt and /run. All other paths are the same inside
and outside, so disks and datastores in the lab directory have one name everywhere.
"""

from __future__ import annotations

import logging
import os
import pwd
import signal
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import libvirt

from understudy.lab.commands import tree_environment
from understudy.lab.domain_xml import domain_type
from understudy.lab.errors import LabError, LabNotClean, LabTimeout, LabUnavailable
from understudy.lab.host_process import HostProcess
from understudy.lab.libvirt_calls import libvirt_calls, open_connection
from understudy.lab.namespaces import Namespaces
from understudy.lab.processes import NamespaceMember, ProcessIdentity

log = logging.getLogger(__name__)

QEMU_USER = "libvirt-qemu"
PLACES = {
    "etc": Path("/etc/libvirt"),
    "lib": Path("/var/lib/libvirt"),
    "cache": Path("/var/cache/libvirt"),
    "log": Path("/var/log/libvirt"),
    "run": Path("/run/libvirt"),
}
KVM_DEVICE = Path("/dev/kvm")
# sockaddr_un has 108 bytes, one of them for the final NUL.
_SOCKET_PATH_MAX = 107

_LIBVIRTD_CONF = """# Private libvirtd of an understudy lab.
host_uuid = "{host_uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""

# User, group and dynamic_ownership stay at Debian's defaults, so that permission problems show as in real life.
# AppArmor profiles would be loaded into the machine's kernel and stay there, so there is no security driver. A private
# /dev for each guest cannot be made where something is mounted on /dev/kvm (see _unusable_file).
_QEMU_CONF = """# Private libvirtd of an understudy lab.
security_driver = "none"
namespaces = []
stdio_handler = "file"
cgroup_controllers = []
backup_tls_x509_cert_dir = "/etc/libvirt/pki"
backup_tls_x509_verify = 1
"""


class LabHost:
    """One private libvirt host; usable from start() to close(), or as a context manager."""

    def __init__(self, name: str, directory: Path) -> None:
        """Plan a host that keeps all its state in `directory`, an absolute path that the QEMU user can enter."""
        self.name = name
        self.directory = directory
        self.socket = directory / "run" / "libvirt-sock"
        self._namespaces: Namespaces | None = None
        self._started: list[HostProcess] = []
        if len(os.fsencode(self.socket)) > _SOCKET_PATH_MAX:
            raise LabUnavailable(str(self.socket), "path too long for a socket", "choose a shorter lab directory")

    @property
    def uri(self) -> str:
        """How libvirt clients outside reach this host."""
        return f"qemu+unix:///system?socket={self.socket}"

    @property
    def namespaces(self) -> Namespaces:
        """The private namespaces this host lives in."""
        if self._namespaces is None:
            raise LabError(f"lab host {self.name}", "not started")
        return self._namespaces

    def __enter__(self) -> LabHost:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Create the namespaces and start libvirtd; ready for connections when this returns."""
        self._write_configuration()
        binds = {self.directory / part: place for part, place in PLACES.items()}
        if KVM_DEVICE.exists() and domain_type() != "kvm":
            binds[self._unusable_file()] = KVM_DEVICE
        self._namespaces = Namespaces(self.name, binds)
        try:
            self.start_libvirtd()
        except LabError:
            self.close()
            raise

    def _write_configuration(self) -> None:
        # log/qemu and lib/images exist on a stock host before the first guest starts, because the packages make them.
        for part in (*PLACES, "log/qemu", "lib/images", "etc/pki"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        etc = self.directory / "etc"
        (etc / "libvirtd.conf").write_text(_LIBVIRTD_CONF.format(host_uuid=uuid.uuid4()))
        (etc / "qemu.conf").write_text(_QEMU_CONF)

    def _unusable_file(self) -> Path:
        # Where /dev/kvm works for root but not for the QEMU user (as in many containers), libvirt finds its cached
        # knowledge of QEMU invalid at each look and probes QEMU anew: 20 times, 15 s, for one start of a guest.
        path = self.directory / "no-kvm"
        path.touch(mode=0o600)
        return path

    def start_libvirtd(self) -> None:
        """Start libvirtd, which takes over guests that still run; ready for connections when this returns."""
        # The parent of the daemon returns only when the daemon answers; without --timeout it never leaves by itself.
        self.namespaces.run(["libvirtd", "--daemon", "--pid-file", str(PLACES["run"] / "libvirtd.pid")])

    def libvirtd(self) -> ProcessIdentity | None:
        """The running libvirtd of this host."""
        return self._by_pid_file("libvirtd.pid")

    def qemu(self, domain: str) -> ProcessIdentity | None:
        """The running QEMU process of a domain."""
        return self._by_pid_file(f"qemu/{domain}.pid")

    def _by_pid_file(self, name: str) -> ProcessIdentity | None:
        try:
            inner_pid = int((self.directory / "run" / name).read_text())
        except FileNotFoundError:
            return None
        return self.namespaces.find(inner_pid)

    def kill_libvirtd(self) -> None:
        """Kill libvirtd as a crash would; guests go on running."""
        self._end_libvirtd(signal.SIGKILL)

    def stop_libvirtd(self) -> None:
        """Ask libvirtd to end; guests go on running."""
        self._end_libvirtd(signal.SIGTERM)

    def restart(self) -> None:
        """Stop and start libvirtd; guests go on running."""
        self.stop_libvirtd()
        self.start_libvirtd()

    def _end_libvirtd(self, number: signal.Signals) -> None:
        daemon = self.libvirtd()
        if daemon is None:
            return
        daemon.signal(number)
        if not daemon.wait_end(timeout_s=15):
            raise LabTimeout(f"lab host {self.name}", f"libvirtd (pid {daemon.pid}) did not end after {number.name}")

    @contextmanager
    def connection(self) -> Iterator[libvirt.virConnect]:
        """A connection of its own for each use, so that a restart of libvirtd breaks none that is kept."""
        with open_connection(self.uri) as connection:
            yield connection

    def run(self, command: Sequence[str], timeout_s: float = 60, *, env: Mapping[str, str] | None = None) -> str:
        """Run a program of this machine on this host, to its end, and return what it wrote to stdout.

        Of the caller's environment only what this source tree needs reaches it, and `env`. Raises CommandFailed with
        its stderr when it does not end with 0; LabTimeout, it being killed, when it does not end in time.
        """
        return self.namespaces.run(command, timeout_s, environment=tree_environment(env))

    def start_process(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path) -> HostProcess:
        """Start a program of this machine on this host that runs until it is ended, with the host at the latest.

        What it writes to stdout and stderr is appended to `log`. Its environment is as in `run`; its stdin is a pipe
        that ends with the owner of the lab.
        """
        process = HostProcess(self.namespaces, command, tree_environment(env), log)
        self._started.append(process)
        return process

    def outside_path(self, path: Path) -> Path:
        """The path by which this machine sees what this host sees at `path`, also where the host has its own mounts."""
        return Path(f"/proc/{self.namespaces.holder.pid}/root") / path.relative_to("/")

    def processes(self) -> list[NamespaceMember]:
        """Everything that runs on this host."""
        return self.namespaces.members()

    def close(self) -> None:
        """Destroy the guests, end libvirtd and everything else of this host; raises LabNotClean with what stayed."""
        if self._namespaces is None:
            return
        try:
            if self.libvirtd() is not None:
                self._destroy_domains()
                self.stop_libvirtd()
        except LabError as exc:
            # Not final: the end of the namespaces takes with it what did not end when asked.
            log.warning("host %s: unclean stop: %s", self.name, exc)
        try:
            self._namespaces.close()
        except LabError as exc:
            raise LabNotClean(f"close lab host {self.name}", str(exc)) from exc
        while self._started:
            self._started.pop().release()
        self._namespaces = None

    def _destroy_domains(self) -> None:
        with self.connection() as connection, libvirt_calls(f"destroy the guests of lab host {self.name}"):
            for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                domain.destroy()


def qemu_user() -> pwd.struct_passwd:
    """The user that QEMU runs as on every lab host."""
    try:
        return pwd.getpwnam(QEMU_USER)
    except KeyError as exc:
        raise LabUnavailable(
            f"user {QEMU_USER}", "does not exist", "install the package libvirt-daemon-system"
        ) from exc

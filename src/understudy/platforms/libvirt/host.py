"""A libvirt host: the platform's verbs, each told in the module that knows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu

from understudy.context import Context
from understudy.errors import GuestError, NotFound, PlatformError, Refused
from understudy.model.guest_operations import GuestLogin, GuestOperations
from understudy.model.inventory import HostFacts, Sighting, Vm, VmState
from understudy.model.job import SnapshotMode
from understudy.model.replica import Baseline
from understudy.model.snapshot import LibraryDisk, LibraryExport, SnapshotRequest, SourceSnapshot, Tag
from understudy.model.transfer import Reason
from understudy.platforms import CommitPatience, ReplicaVmSpec, VmTraces
from understudy.platforms.foreign import source_of
from understudy.platforms.libvirt import backup, checkpoints, commit, external
from understudy.platforms.libvirt.connection import Connection, error_text, libvirt_errors
from understudy.platforms.libvirt.inventory import describe, vm_state
from understudy.platforms.libvirt.offline import offline_snapshot
from understudy.platforms.libvirt.replica_vm import on_sata, replica_xml
from understudy.platforms.libvirt.target_facts import target_facts
from understudy.platforms.libvirt.traces import traces_of

_FALLBACK_USER = (0, 0)
# libvirt's own default for agent commands: wait for ever. We set a limit only around our calls.
_AGENT_TIMEOUT_DEFAULT = libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK


class LibvirtHost:
    """One host behind a libvirt URI; implements :class:`understudy.platforms.Platform`."""

    def __init__(self, uri: str, patience: CommitPatience) -> None:
        """Connect.

        :raises HostUnreachable: if the daemon does not answer.
        """
        self._connection = Connection(uri)
        self._patience = patience

    @property
    def _conn(self) -> libvirt.virConnect:
        return self._connection.conn

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()

    # --- inventory ----------------------------------------------------------------------------------------------------

    def facts(self) -> HostFacts:
        """Versions, size, and the user that opens disk images."""
        with libvirt_errors(f"host {self._connection.uri}"):
            info = self._conn.getInfo()
            return HostFacts(
                hostname=self._conn.getHostname(),
                platform_version=_version(self._conn.getLibVersion()),
                hypervisor_version=_version(self._conn.getVersion()),
                cpus=info[2],
                memory_bytes=info[1] << 20,
                emulator_user=_emulator_user(self._conn.getCapabilities()),
            )

    def preflight(self) -> None:
        """Its facts and its domains tell all."""

    def list_vms(self) -> tuple[Vm, ...]:
        """All domains, by name."""
        with libvirt_errors(f"list VMs of {self._connection.uri}"):
            domains = self._conn.listAllDomains()
        return tuple(sorted((describe(domain) for domain in domains), key=lambda vm: vm.name))

    def sighting(self, name: str, uuid: str) -> Sighting | None:
        """The domain with that UUID, else the one of that name."""
        domain = self._connection.domain(uuid) if uuid else None
        domain = domain or self._connection.domain_by_name(name)
        if domain is None:
            return None
        with libvirt_errors(f"look up VM {name!r}"):
            return Sighting(domain.name(), domain.UUIDString(), vm_state(domain))

    def describe_vm(self, name: str) -> Vm:
        """One domain by name."""
        domain = self._connection.domain_by_name(name)
        if domain is None:
            raise NotFound(f"VM {name!r}", f"host {self._connection.uri} has no VM of that name",
                           "see 'understudy host vms'")
        return describe(domain)

    # --- source -------------------------------------------------------------------------------------------------------

    def tracking(self, vm: Vm, baseline: Baseline) -> dict[str, Reason]:
        """Whether changes since ``baseline`` are known, per disk."""
        return checkpoints.tracking(self._domain(vm), vm, baseline)

    @contextmanager
    def snapshot(
        self, ctx: Context, vm: Vm, mode: SnapshotMode, request: SnapshotRequest
    ) -> Iterator[SourceSnapshot]:
        """Hold one instant; ``auto`` is ``backup``, and a powered-off VM needs neither."""
        domain = self._domain(vm)
        if vm.state is VmState.SHUT_OFF:
            held = offline_snapshot(vm, request)
        elif mode is SnapshotMode.EXTERNAL:
            made = {name: external.delta_path(vm.disk(name), request) for name in request.disks}
            end = partial(commit.commit_deltas, ctx, self._deltas(vm, request.tag, made), self._patience)
            held = external.external_snapshot(domain, vm, request, end)
        else:
            held = backup.backup_snapshot(domain, vm, request)
        with held as snapshot:
            yield snapshot

    @contextmanager
    def hold_again(
        self, ctx: Context, vm: Vm, request: SnapshotRequest, snapshot: SourceSnapshot
    ) -> Iterator[SourceSnapshot]:
        """Take over a backup job, or deltas, by the session's own tag; what lies still needs nothing."""
        domain = self._domain(vm)
        end: Callable[[], object] = list  # nothing
        if backup.is_ours(backup.running_backup(domain), request.tag, whole=True):
            end = partial(backup.end_backup, domain, vm, request.tag)
        elif (made := commit.tagged_deltas(domain, vm, request.tag)).keys() == set(request.disks):
            end = partial(commit.commit_deltas, ctx, self._deltas(vm, request.tag, made), self._patience)
        elif vm.state is not VmState.SHUT_OFF or domain.isActive():
            raise PlatformError(f"snapshot of VM {vm.name!r}", "it is not held any more", "run the job again")
        try:
            yield snapshot
        finally:
            end()

    def library_export(self, disk: LibraryDisk) -> LibraryExport:
        """No disk of a libvirt host is read like that."""
        raise PlatformError(f"disk {disk.name} of {self._connection.uri}", "a libvirt host has no disk library")

    def markers(self, vm: Vm) -> dict[str, str]:
        """The domain's checkpoints, with the times of their creation."""
        return checkpoints.creation_times(self._domain(vm), vm)

    def remove_orphan(self, vm: Vm, name: str, disks: tuple[str, ...]) -> str:
        """Remove the bitmaps of a checkpoint that libvirt does not know any more."""
        return checkpoints.remove_orphan(self._domain(vm), vm, name, disks)

    def keep_baseline(self, vm: Vm, tag: Tag, keep: str, former: str) -> list[str]:
        """Remove the job's checkpoints, and ``former``, except ``keep``."""
        domain = self._connection.domain(vm.uuid)
        return [] if domain is None else checkpoints.remove_others(domain, vm, tag, keep, former)

    def sweep(self, ctx: Context, vm: Vm, tag: Tag) -> list[str]:
        """End a backup job of a dead session, merge its deltas."""
        domain = self._domain(vm)
        if vm.state is VmState.SHUT_OFF:
            deltas = commit.tagged_deltas(domain, vm, tag)
            why, todo = commit.stays_while_off(deltas.values())
            return [f"the snapshot of VM {vm.name!r} is not committed: {why}; {todo}"] if deltas else []
        done = []
        if backup.is_ours(backup.running_backup(domain), tag):
            backup.end_backup(domain, vm, tag)
            done.append(f"ended the backup job of a dead session on VM {vm.name!r}")
        done += [f"merged the snapshot delta {path} of a dead session"
                 for path in commit.commit_deltas(ctx, self._deltas(vm, tag, {}), self._patience.once)]
        return done

    def traces(self) -> tuple[VmTraces, ...]:
        """What of ours every domain has."""
        with libvirt_errors(f"list VMs of {self._connection.uri}"):
            domains = self._conn.listAllDomains()
        found = [traces for domain in domains if (traces := traces_of(domain, self._connection.uri)) is not None]
        return tuple(sorted(found, key=lambda traces: traces.name))

    def freeze(self, vm_uuid: str, timeout_s: float) -> int:
        """Freeze through the QEMU guest agent."""
        domain = self._connection.require_domain(vm_uuid, vm_uuid)
        with _agent_timeout(domain, timeout_s), libvirt_errors(f"freeze VM {domain.name()!r}", GuestError):
            return int(domain.fsFreeze())

    def thaw(self, vm_uuid: str, timeout_s: float) -> int:
        """Thaw through the QEMU guest agent."""
        domain = self._connection.domain(vm_uuid)
        if domain is None or vm_state(domain) is VmState.SHUT_OFF:
            return 0
        with _agent_timeout(domain, timeout_s), libvirt_errors(f"thaw VM {domain.name()!r}", GuestError):
            return int(domain.fsThaw())

    def agent_command(self, vm_uuid: str, command: str, arguments: Mapping[str, Any], timeout_s: float) -> Any:
        """One command of the QEMU guest agent; its answer decoded."""
        domain = self._connection.require_domain(vm_uuid, vm_uuid)
        request = json.dumps({"execute": command, **({"arguments": dict(arguments)} if arguments else {})})
        with libvirt_errors(f"guest agent of VM {domain.name()!r}: {command}", GuestError):
            answer = libvirt_qemu.qemuAgentCommand(domain, request, max(1, round(timeout_s)), 0)
        try:
            return json.loads(answer)["return"]
        except (ValueError, KeyError, TypeError) as exc:
            raise GuestError(f"guest agent of VM {domain.name()!r}: {command}", "its answer is not understood") from exc

    def guest_operations(self, vm_uuid: str, login: GuestLogin) -> GuestOperations:  # noqa: ARG002 - as others have it
        """Never: a guest of libvirt is reached by its QEMU guest agent, or by SSH."""
        raise GuestError(f"guest operations in VM {vm_uuid}", "a libvirt host has none", "use --transport qga, or ssh")

    def _deltas(self, vm: Vm, tag: Tag, made: Mapping[str, str]) -> commit.Deltas:
        return commit.Deltas(self._connection.uri, vm, tag, partial(self._domain, vm), made)

    def _domain(self, vm: Vm) -> libvirt.virDomain:
        return self._connection.require_domain(vm.uuid, vm.name)

    # --- target -------------------------------------------------------------------------------------------------------

    def define_replica(self, spec: ReplicaVmSpec) -> list[str]:
        """Define the replica VM from the source's definition, adapted to this host."""
        other = self._connection.domain_by_name(spec.name)
        if other is not None and other.UUIDString() != spec.uuid:
            raise Refused(f"define replica VM {spec.name!r}", "the target host has another VM of that name",
                          "rename or remove it, or use another --suffix")
        xml, warnings = replica_xml(spec, target_facts(self._conn, spec.definition))
        with libvirt_errors(f"define replica VM {spec.name!r}"):
            try:
                self._conn.defineXML(xml)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() != libvirt.VIR_ERR_CONFIG_UNSUPPORTED or source_of(spec.definition) is None:
                    raise
                # No host tells which controllers its QEMU has. Red Hat's has few.
                self._conn.defineXML(on_sata(xml))
                warnings.append(f"the disks of the replica are on SATA, for which its guest may have no driver: "
                                f"{error_text(exc)}")
        return warnings

    def replica_state(self, uuid: str) -> VmState | None:
        """Power state, or None without a definition."""
        domain = self._connection.domain(uuid)
        if domain is None:
            return None
        with libvirt_errors(f"state of replica VM {uuid}"):
            return vm_state(domain)

    def replica_disks(self, uuid: str) -> set[str]:
        """Paths of the disks by the persistent definition, and by the active one."""
        domain = self._connection.domain(uuid)
        if domain is None:
            return set()
        with libvirt_errors(f"disks of replica VM {uuid}"):
            definitions = [ET.fromstring(domain.XMLDesc(flags)) for flags in (libvirt.VIR_DOMAIN_XML_INACTIVE, 0)]
        disks = [disk for root in definitions for disk in root.iterfind("devices/disk[@device='disk']/source")]
        return {path for path in (disk.get("file") or disk.get("dev") for disk in disks) if path}

    def start_replica(self, uuid: str) -> None:
        """Power on."""
        domain = self._connection.require_domain(uuid, uuid)
        with libvirt_errors(f"start replica VM {domain.name()!r}"):
            domain.create()

    def stop_replica(self, uuid: str) -> None:
        """Power off at once."""
        domain = self._connection.domain(uuid)
        if domain is None:
            return
        with libvirt_errors(f"stop replica VM {domain.name()!r}"):
            if domain.isActive():
                domain.destroy()

    def undefine_replica(self, uuid: str) -> None:
        """Remove the definition with all metadata that libvirt keeps of it."""
        domain = self._connection.domain(uuid)
        if domain is None:
            return
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        )
        with libvirt_errors(f"undefine replica VM {domain.name()!r}"):
            domain.undefineFlags(flags)


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _emulator_user(capabilities: str) -> tuple[int, int]:
    """User and group of QEMU processes, from the DAC model's base label, e.g. ``+64055:+64055``."""
    for model in ET.fromstring(capabilities).iterfind("host/secmodel"):
        if model.findtext("model") == "dac":
            label = model.findtext("baselabel", "")
            user, _, group = label.partition(":")
            if user and group:
                return int(user), int(group)
    return _FALLBACK_USER


@contextmanager
def _agent_timeout(domain: libvirt.virDomain, timeout_s: float) -> Iterator[None]:
    """Limit agent commands inside the block; libvirt would wait for ever for an agent that accepted a command (P27)."""
    with libvirt_errors("set the time limit of the guest agent", GuestError):
        domain.agentSetResponseTimeout(max(1, int(timeout_s)), 0)
    try:
        yield
    finally:
        with libvirt_errors("set the time limit of the guest agent", GuestError):
            domain.agentSetResponseTimeout(_AGENT_TIMEOUT_DEFAULT, 0)

"""The file system of the Debian guest: debootstrap, and the settings that make the result a small server.

Packages come from where this machine's apt gets its own. What only people read is left out, and so is what a guest
without KVM would wait for: log-in prompts, daily jobs, PostgreSQL's compiler.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from understudy.lab.commands import run
from understudy.lab.errors import LabUnavailable

SUITE = "bookworm"
#: The user who may do everything by sudo, without a password.
ADMIN = "admin"
#: The data directory of the database server.
CLUSTER = "/var/lib/postgresql/15/main"

_PACKAGES = ("systemd-sysv", "udev", "iproute2", "qemu-guest-agent", "openssh-server", "sudo", "postgresql-15")
_UNREAD = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/i18n/*", "/usr/lib/*/libLLVM*",
           "/usr/lib/postgresql/*/lib/bitcode/*")  # fmt: skip
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dev-hugepages.mount", "dev-mqueue.mount", "dpkg-db-backup.timer",
    "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty@tty1.service", "getty-static.service",
    "kmod-static-nodes.service", "proc-sys-fs-binfmt_misc.automount", "serial-getty@ttyS0.service",
    "sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "systemd-journal-flush.service", "systemd-logind.service", "systemd-modules-load.service",
    "systemd-network-generator.service", "systemd-pstore.service", "systemd-random-seed.service",
    "systemd-remount-fs.service", "systemd-sysctl.service", "systemd-sysusers.service",
    "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
)  # fmt: skip
_BEFORE = {
    "etc/dpkg/dpkg.cfg.d/lab": "force-unsafe-io\n" + "".join(f"path-exclude={pattern}\n" for pattern in _UNREAD),
}
# The addresses that QEMU's own network has for each guest.
_NETWORK = """[Service]
Type=oneshot
ExecStart=/sbin/ip link set lo up
ExecStart=/sbin/ip address add 10.0.2.15/24 dev eth0
ExecStart=/sbin/ip link set eth0 up
[Install]
WantedBy=multi-user.target
"""
# Of some hundred devices these are waited for.
_COLDPLUG = """[Service]
ExecStart=
ExecStart=udevadm trigger --type=all --action=add --subsystem-match=block --subsystem-match=virtio-ports
"""
_AFTER = {
    "etc/fstab": "LABEL=@ROOT@ / ext4 discard 0 0\nUUID=@SWAP@ none swap sw 0 0\n",
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost debian\n",
    f"etc/sudoers.d/{ADMIN}": f"{ADMIN} ALL=(ALL) NOPASSWD: ALL\n",
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=volatile\n",
    "etc/systemd/system/lab-network.service": _NETWORK,
    "etc/systemd/system/systemd-udev-trigger.service.d/lab.conf": _COLDPLUG,
    "etc/postgresql/15/main/conf.d/lab.conf": "shared_buffers = 16MB\njit = off\nssl = off\nmax_connections = 20\n",
}
# Arguments: a new directory, the mirror, files for before and for after, the script, the target, its label.
# In memory, because dpkg waits for the disk after every file; in a mount namespace, so that nothing stays mounted.
_BUILD = f"""set -e
mount -t tmpfs -o size=1500m tmpfs "$1"
mkdir "$1/tree"
cp -r "$3/." "$1/tree"
if ! debootstrap --variant=minbase --include={",".join(_PACKAGES)} {SUITE} "$1/tree" "$2" >"$1/log" 2>&1; then
    tail -n 5 "$1/log" "$1/tree/debootstrap/debootstrap.log" >&2
    exit 1
fi
cp -r "$4/." "$1/tree"
chroot "$1/tree" sh -e -c "$5"
mkfs.ext4 -q -b 4096 -L "$7" -d "$1/tree" "$6"
"""
_SETTLE = f"""
useradd --create-home --shell /bin/bash {ADMIN}
install -d -o {ADMIN} -g {ADMIN} -m 700 /home/{ADMIN}/.ssh
chmod 440 /etc/sudoers.d/{ADMIN}
systemctl --quiet mask {" ".join(_MASKED)}
systemctl --quiet enable lab-network.service
systemctl --quiet set-default multi-user.target
rm -rf /var/cache/apt/archives/*.deb /var/cache/apt/*.bin /var/lib/apt/lists/*
"""


def build_root(target: Path, root_label: str, swap_uuid: str, work_dir: Path) -> None:
    """Make an ext4 file system with a whole Debian in the file `target`, which has its final size.

    :raises LabUnavailable: if this machine's apt knows no mirror of the release.
    """
    before, after, mount_point = work_dir / "before", work_dir / "after", work_dir / "debootstrap"
    mount_point.mkdir()
    _write(before, _BEFORE)
    _write(after, {path: text.replace("@ROOT@", root_label).replace("@SWAP@", swap_uuid)
                   for path, text in _AFTER.items()})  # fmt: skip
    arguments = [str(mount_point), mirror(), str(before), str(after), _SETTLE, str(target), root_label]
    run(["unshare", "--mount", "env", *proxies(), "sh", "-c", _BUILD, "sh", *arguments], timeout_s=900)


def _write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def mirror() -> str:
    """Where this machine gets the packages of the release from."""
    lines = run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
    for site, release, component in (line.split() for line in lines.splitlines()):
        if (release, component) == (SUITE, "main"):
            return site
    raise LabUnavailable(f"Debian {SUITE}", "this machine's apt has no source for it", "add one, run `apt-get update`")


def proxies() -> list[str]:
    """The HTTP proxies of this machine, as words for env: those of apt, or else those of our own environment."""
    found = {}
    for kind in ("http", "https"):
        said = run(["apt-config", "dump", "--format", "%v", f"Acquire::{kind}::Proxy"]).strip()
        value = said or os.environ.get(f"{kind}_proxy", "")
        if value and value != "DIRECT":
            found[f"{kind}_proxy"] = value
    return [f"{name}={value}" for name, value in found.items()]

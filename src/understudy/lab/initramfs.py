"""What runs inside the lab guest: busybox, the QEMU guest agent and a few scripts, in one initramfs.

The user space lives in memory, so a frozen disk file system never blocks the guest agent that froze it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from understudy.lab.commands import find_program, run
from understudy.lab.errors import LabUnavailable
from understudy.lab.kernel import Kernel

DATA_LABEL = "understudy-data"
SWAP_LABEL = "understudy-swap"
DATA_MOUNT = "/data"
FREEZE_HOOK = f"{DATA_MOUNT}/fsfreeze-hook"

_INIT = """#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /etc/modules); do insmod /lib/modules/$module; done
hostname lab
exec /sbin/init
"""

_INITTAB = """::sysinit:/etc/rc
::respawn:/etc/agent
::respawn:/sbin/acpid -f -l /dev/null -p /run/acpid.pid
::ctrlaltdel:/sbin/reboot
"""

# Partitions of a disk appear a moment after its driver is loaded.
_RC = f"""#!/bin/sh
export PATH=/bin:/sbin
tries=100
until data=$(findfs LABEL={DATA_LABEL} 2>/dev/null) || [ $tries = 0 ]; do usleep 50000; tries=$((tries - 1)); done
mount -t ext4 -o discard "$data" {DATA_MOUNT} || echo "lab guest: no data file system" >/dev/console
swap=$(findfs LABEL={SWAP_LABEL} 2>/dev/null) && swapon "$swap"
for node in /dev/vd[b-z]* /dev/sd[b-z]*; do
    [ -b "$node" ] || continue
    place=/mnt/${{node#/dev/}}
    mkdir -p "$place"
    type=ext4
    if [ "$(dd if="$node" bs=4 count=1 2>/dev/null)" = XFSB ]; then
        type=xfs
        grep -q xfs /proc/filesystems || for module in {DATA_MOUNT}/boot/xfs-*.ko; do insmod $module; done
    fi
    mount -t $type -o discard "$node" "$place" 2>/dev/null || rmdir "$place"
done
exit 0
"""

# Without udev nobody makes /dev/virtio-ports, so the port is found by the name that sysfs shows.
_AGENT = """#!/bin/sh
export PATH=/bin:/sbin
for port in /sys/class/virtio-ports/*; do
    if [ "$(cat $port/name)" = org.qemu.guest_agent.0 ]; then
        exec /bin/qemu-ga -m virtio-serial -p /dev/${port##*/} -t /run -F/etc/fsfreeze-hook
    fi
done
sleep 1
"""

# A test puts its own script on the data file system; QEMU's agent insists that the configured hook exists.
_FREEZE_HOOK = f"""#!/bin/sh
[ -x {FREEZE_HOOK} ] && exec {FREEZE_HOOK} "$@"
exit 0
"""

# One script under the names poweroff, reboot, halt and shutdown (the guest agent calls `shutdown -h` or `-r`).
_SHUTDOWN = """#!/bin/sh
export PATH=/bin:/sbin
action=poweroff
case "$0 $*" in *reboot*|*" -r"*) action=reboot ;; esac
kill -TERM -1
usleep 200000
kill -KILL -1
sync
swapoff -a
umount -a -r -t ext4,xfs
exec /bin/busybox $action -f
"""

_POWER_BUTTON = """#!/bin/sh
exec /sbin/poweroff
"""

# A step on the way to a system that lies on disk: load drivers, find its root file system, become its init (or what
# `init=` on the kernel's command line says).
_SWITCH = """#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /etc/modules); do insmod /lib/modules/$module; done
until root=$(findfs LABEL=@LABEL@ 2>/dev/null); do usleep 20000; done
mount -t ext4 -o discard "$root" /mnt
init=/sbin/init
for word in $(cat /proc/cmdline); do case $word in init=*) init=${word#init=} ;; esac; done
for place in proc sys dev; do mount --move /$place /mnt/$place; done
exec switch_root /mnt "$init"
"""

_SCRIPTS = {
    "init": _INIT,
    "etc/rc": _RC,
    "etc/agent": _AGENT,
    "etc/fsfreeze-hook": _FREEZE_HOOK,
    "etc/acpi/PWRF/00000080": _POWER_BUTTON,
    "sbin/shutdown": _SHUTDOWN,
}
_DIRECTORIES = ("bin", "sbin", "dev", "etc", "lib/modules", "lib64", "mnt", "proc", "run", "sys", "tmp", "data", "root")
_OWN_SBIN = ("shutdown", "poweroff", "reboot", "halt")


def build_initramfs(kernel: Kernel, work_dir: Path, target: Path) -> None:
    """Write the guest's complete user space as an uncompressed initramfs (fast to load without KVM)."""
    tree = work_dir / "initramfs"
    for name in _DIRECTORIES:
        (tree / name).mkdir(parents=True)
    _add_scripts(tree)
    _add_busybox(tree)
    _add_with_libraries(tree, Path(find_program("qemu-ga")))
    _add_modules(tree, kernel)
    _pack(tree, target)


def build_boot_initramfs(kernel: Kernel, root_label: str, work_dir: Path, target: Path) -> None:
    """Write an initramfs that starts `/sbin/init` on the ext4 file system labelled `root_label`."""
    tree = work_dir / "boot-initramfs"
    for name in _DIRECTORIES:
        (tree / name).mkdir(parents=True)
    _add_script(tree / "init", _SWITCH.replace("@LABEL@", root_label))
    _add_busybox(tree)
    _add_modules(tree, kernel)
    _pack(tree, target)


def _add_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def _add_scripts(tree: Path) -> None:
    for name, text in _SCRIPTS.items():
        _add_script(tree / name, text)
    for name in _OWN_SBIN[1:]:
        (tree / "sbin" / name).symlink_to("shutdown")
    (tree / "etc/inittab").write_text(_INITTAB)
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\n")


def _add_busybox(tree: Path) -> None:
    """Copy the static busybox with one link for each of its commands."""
    busybox = find_program("busybox")
    if "not a dynamic executable" not in run(["sh", "-c", f"ldd {busybox} 2>&1 || true"]):
        raise LabUnavailable(busybox, "not a static program", "install the package busybox-static")
    shutil.copy2(busybox, tree / "bin/busybox")
    for applet in run(["busybox", "--list"]).split():
        if applet not in ("busybox", *_OWN_SBIN):
            (tree / "bin" / applet).symlink_to("/bin/busybox")
    for applet in ("init", "acpid", "mke2fs"):
        (tree / "sbin" / applet).symlink_to("/bin/busybox")


def _add_with_libraries(tree: Path, program: Path) -> None:
    """Copy a program and the shared libraries it names, under the paths where the loader looks for them."""
    shutil.copy2(program, tree / "bin" / program.name)
    for library in re.findall(r"(/\S+) \(0x", run(["ldd", str(program)])):
        copy = tree / library.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, copy)


def _add_modules(tree: Path, kernel: Kernel) -> None:
    for module in kernel.modules:
        shutil.copy2(module, tree / "lib/modules" / module.name)
    (tree / "etc/modules").write_text("".join(f"{module.name}\n" for module in kernel.modules))


def _pack(tree: Path, target: Path) -> None:
    names = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
    # pipefail is not POSIX; an explicit output file makes cpio's own status the status.
    run(["busybox", "cpio", "-o", "-H", "newc", "-F", str(target)], cwd=tree, stdin=names)

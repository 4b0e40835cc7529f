"""virt-v2v in a Debian of its own, and a guest as it comes from vSphere: it knows VMware's devices, and no others.

virt-v2v looks into a guest by an appliance of programs of the machine that it runs on, among them udev, mdadm and LVM:
not for every machine that runs tests.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from understudy.lab import image, kernel
from understudy.lab.commands import run
from understudy.lab.debian_tree import SUITE, mirror, proxies
from understudy.lab.image import LINUX, Partition
from understudy.units import MIB

MEMORY_MIB = 384
_LABEL = "vmware-root"
_ROOT_SIZE = 700 * MIB
_PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"

# Arguments: a new directory, the mirror, packages for debootstrap.
_DEBOOTSTRAP = f"""set -e
mkdir -p "$1/etc/dpkg/dpkg.cfg.d" "$1/etc/apt/apt.conf.d"
echo force-unsafe-io >"$1/etc/dpkg/dpkg.cfg.d/lab"
for unread in doc man locale; do echo "path-exclude=/usr/share/$unread/*" >>"$1/etc/dpkg/dpkg.cfg.d/lab"; done
printf 'APT::Install-Recommends "false";\\nAPT::Sandbox::User "root";\\n' >"$1/etc/apt/apt.conf.d/lab"
debootstrap --variant=minbase --include="$3" {SUITE} "$1" "$2" >"$1.log" 2>&1 || {{ tail -n 5 "$1.log" >&2; exit 1; }}
"""
# Arguments: the tree, the unpacked kernel, its release. A package's own scripts would want to build an initramfs.
_TOOL = f"""set -e
printf '#!/bin/sh\\nexit 101\\n' >"$1/usr/sbin/policy-rc.d"
chmod 755 "$1/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive {_PATH}
packages='virt-v2v nbdkit qemu-system-x86 qemu-utils'
chroot "$1" apt-get install -qq -y $packages >"$1.log" 2>&1 || {{ tail "$1.log" >&2; exit 1; }}
cp -r "$2/boot/." "$1/boot"
cp -r "$2/lib/modules" "$1/usr/lib"
chroot "$1" depmod "$3"
rm -rf "$1/var/cache/apt/archives" "$1/var/lib/apt/lists"
"""
# Arguments: the tree, the file system, a mount point. Its boot loader is the lab's; GRUB's settings are for virt-v2v,
# which believes in no other.
_GUEST = f"""set -e
mount -o loop "$2" "$3"
cp -a --sparse=never "$1/." "$3"
cd "$3"
release=$(basename boot/vmlinuz-* | cut -d- -f2-)
ln -s "vmlinuz-$release" boot/vmlinuz
ln -s "initrd.img-$release" boot/initramfs
echo 'LABEL={_LABEL} / ext4 discard 0 1' >etc/fstab
echo vmware-guest >etc/hostname
echo 'the content' >srv/content
cat >boot/extlinux.conf <<END
DEFAULT lab
PROMPT 0
TIMEOUT 0
LABEL lab
  LINUX /boot/vmlinuz
  INITRD /boot/initramfs
  APPEND root=LABEL={_LABEL} console=ttyS0 quiet mitigations=off
END
cat >boot/grub/grub.cfg <<END
menuentry 'Debian' {{
  search --no-floppy --label --set=root {_LABEL}
  linux /boot/vmlinuz-$release root=LABEL={_LABEL} ro
  initrd /boot/initrd.img-$release
}}
END
sed -i 's/^MODULES=.*/MODULES=list/' etc/initramfs-tools/initramfs.conf
printf 'vmw_pvscsi\\nsd_mod\\nvmxnet3\\n' >etc/initramfs-tools/modules
mount -t proc proc proc
chroot . env {_PATH} update-initramfs -u >/dev/null 2>&1
if chroot . env {_PATH} lsinitramfs "/boot/initrd.img-$release" | grep -q virtio_blk; then exit 1; fi
umount proc
extlinux --install boot 2>/dev/null
cd /
umount "$3"
"""
# Arguments: the tree, then those of the program. The replica and the proxy's directory are below the same /tmp.
_WRAPPER = """#!/bin/sh
exec unshare --mount sh -c '
mount --rbind /dev "$0/dev" && mount --rbind /proc "$0/proc" && mount --rbind /sys "$0/sys" || exit 1
mount --rbind @TMP@ "$0@TMP@" || exit 1
exec chroot "$0" env PATH=/usr/sbin:/usr/bin:/sbin:/bin LIBGUESTFS_BACKEND=direct \\
    LIBGUESTFS_BACKEND_SETTINGS=force_tcg virt-v2v-in-place "$@"' @TREE@ "$@"
"""


def make_program(cache_dir: Path, directory: Path) -> Path:
    """The program in a directory for PATH, which is returned."""
    tree = _tool(cache_dir)
    temporary = Path(tempfile.gettempdir()).resolve()
    (tree / temporary.relative_to("/")).mkdir(parents=True, exist_ok=True)
    program = directory / "virt-v2v-in-place"
    directory.mkdir()
    program.write_text(_WRAPPER.replace("@TREE@", str(tree)).replace("@TMP@", str(temporary)))
    program.chmod(0o755)
    return directory


def build_guest_of_vsphere(cache_dir: Path) -> Path:
    """The image of a Debian with a boot loader and an initramfs for VMware's devices only."""
    return image.cached_image(cache_dir, "vmware", _digest(), _build_guest)


def _digest() -> str:
    package = kernel.newest_kernel()
    content = f"{package.name} {package.version}\n".encode() + Path(__file__).read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _tool(cache_dir: Path) -> Path:
    tree = cache_dir / f"virt-v2v-{_digest()}"
    if not tree.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache_dir) as work_dir:
            built = Path(work_dir) / "tree"
            unpacked, package = Path(work_dir) / "unpacked", kernel.newest_kernel()
            unpacked.mkdir()
            kernel.unpack_kernel(package, unpacked)
            _debootstrap(built, "ca-certificates")
            _script(_TOOL, str(built), str(unpacked / "kernel"), package.release)
            built.rename(tree)
    return tree


def _build_guest(work_dir: Path) -> Path:
    tree, root, mount_point = work_dir / "tree", work_dir / "root.ext4", work_dir / "mount"
    _debootstrap(tree, "systemd-sysv,udev,qemu-guest-agent,linux-image-cloud-amd64,initramfs-tools,grub-pc")
    image.allocate(root, _ROOT_SIZE)
    run(["mkfs.ext4", "-q", "-b", "4096", "-L", _LABEL, "-O", "^64bit,^metadata_csum", str(root)])
    mount_point.mkdir()
    _script(_GUEST, str(tree), str(root), str(mount_point))
    built = work_dir / "vmware.qcow2"
    image.make_disk(built, _ROOT_SIZE + 2 * MIB, [Partition(MIB, root, LINUX)])
    return built


def _debootstrap(tree: Path, packages: str) -> None:
    tree.mkdir()
    _script(_DEBOOTSTRAP, str(tree), mirror(), packages)


def _script(text: str, *arguments: str) -> None:
    """In a mount namespace, so that nothing stays mounted."""
    run(["unshare", "--mount", "env", *proxies(), "sh", "-c", text, "sh", *arguments], timeout_s=1800)



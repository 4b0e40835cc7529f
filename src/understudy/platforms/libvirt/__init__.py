"""libvirt with QEMU: hosts reached by libvirt's own remote protocol."""

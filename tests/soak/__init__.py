"""Soak: random sessions with faults on real lab VMs; every restore point must be what the guest had then."""

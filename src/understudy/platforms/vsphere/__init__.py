"""VMware vSphere: vCenter and single ESXi hosts."""

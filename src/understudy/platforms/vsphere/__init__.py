"""VMware vSphere: a vCenter (``vpx://``) or a single ESXi host (``esx://``). No pyVmomi type leaves this package."""

"""vSphere without a vCenter: the doubles that stand where a vCenter, an ESXi host and VMware's disk library stand.

    pyVmomi --- HTTPS ---> front.py --- HTTP ---> simulator/main.go (govmomi's simulator, from Debian's packages)
                              |                        |
                         facts.json             datastore folders: the bytes of the disks
                              |                        |
    nbdkit, its VDDK plugin, and the double of the disk library read both

- `simulator.py` builds and runs the simulator: SOAP, REST, inventory, tasks; no disk contents, no tracked changes.
- `front.py` is what tests use: `with front(Inventory(vms=2), directory) as vcenter`. Its docstring lists what it adds.
- `facts.py` is the contract with the disk library's double: who may open which file, and how.
- `client.py` is a pyVmomi session for tests; `conftest.py` has fixtures, `steps.py` what tests do again and again.
- `scene.py` is a VM with its job by the command line; `guest_disk.py` writes files into it, as no guest does here.
- `matrix.py` and `shelves.py` are the crash matrix: who dies where, and what must be true of every point afterwards.

The packages are in `packaging/debian-packages-test` (Go and the govmomi library); without them the tests are skipped
and say so. The program is built once for all processes, in `/var/cache/understudy/vsphere`, which takes a minute.

Nothing here was compared with a real vCenter. The doubles state our reading of the published interfaces, strictly, so
that code which passes obeys at least that reading. What only a real vCenter can prove stays unproved: its answers of
changed block tracking, the stun and its length, quiescing, the locks and deltas of VMFS, permissions, throughput.
"""

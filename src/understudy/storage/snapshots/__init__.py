"""The store whose restore points are snapshots of the replica VM, which its platform makes and removes.

A replica is a directory beside a proxy that has no disk data: what each point says of itself (``replica.json``,
``digests/``, ``points/``), while the content is in the platform's datastore. The disks of a new point are written in
place, at the leaf of the replica VM, through an NBD export that the proxy opens. Nothing below a snapshot ever changes
(S1). What was written at the leaf counts for nothing until a snapshot was made of it and the record names that (S2);
before each attempt the platform reverts the VM to the newest point, so nothing is ever continued.
"""

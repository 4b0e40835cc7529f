"""The qcow2 replica store: restore points are chains of immutable qcow2 files.

::

    <replica>/replica.json                      the record; what it does not name does not exist
    <replica>/layers/<disk>-<point>.qcow2       a restore point's disk is a layer and all layers below it
    <replica>/digests/<disk>-<point>.digest
    <replica>/points/<point>.xml                the VM's definition
    <replica>/head/<disk>.qcow2                 throw-away layer of the defined replica VM
    <replica>/.lock                             owner, and the highest attempt number seen
    <replica>/health.json                       what verifying found out about the points; .health is its lock
    <replica>/.verify                           lock: layers are being verified, or merged

Files in the making carry the suffix ``.partial``. These exist only while a point is in the making::

    <replica>/layers/<disk>-<point>.journal.partial          from what the layer can be continued after a crash
    <replica>/digests/<disk>-<point>.digest.claims.partial   digests of the attempt that the layer was taken over from

Nothing below imports another part of the program than the model, the errors and the fault points.
"""

"""vSphere without a vCenter: the doubles that stand where a vCenter, an ESXi host and VMware's disk library stand.

Nothing here was compared with a real vCenter. The doubles state our reading of the published interfaces, strictly, so
that code which passes obeys at least that reading; what only a real vCenter can prove stays unproved.
"""

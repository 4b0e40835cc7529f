"""Did the VM go away while it was replicated, so that planning anew may give the operator a point after all?"""

from __future__ import annotations

from understudy.context import Context
from understudy.errors import UnderstudyError
from understudy.model.inventory import Vm, VmState
from understudy.platforms import SourcePlatform

#: How long the platform may take to notice that a VM ended whose disks are served no more.
NOTICED_S = 1.0
#: A VM that somebody restarts is off for a moment; if its disks were read then, it could not start.
RESTARTED_S = 5.0


def power_change(ctx: Context, source: SourcePlatform, before: Vm) -> str:
    """What happened to the power of a VM since it was described as ``before``, in words; empty if it runs on.

    :raises Cancelled: when the operator asked for the end meanwhile.
    """
    if before.state is VmState.SHUT_OFF:
        return ""
    try:
        if not ctx.wait_until(lambda: source.describe_vm(before.name).run != before.run, NOTICED_S):
            return ""
        runs = ctx.wait_until(lambda: bool(source.describe_vm(before.name).run), RESTARTED_S)
    except UnderstudyError as exc:
        ctx.check()
        ctx.log(__name__).warning("whether VM %s was powered off is not known: %s", before.name, exc)
        return ""
    return "it was restarted" if runs else "it was powered off"

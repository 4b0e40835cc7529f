"""The operation that says what a transfer would do."""

from __future__ import annotations

from contextlib import ExitStack

from understudy.context import Context
from understudy.model.estimate import Sums
from understudy.model.exclusion import ranges_of
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.copier import check_base, doubting, known_content, spec_of
from understudy.mover.estimate import sum_transfer
from understudy.mover.excluded import masked, masks_of
from understudy.mover.meter import Meter
from understudy.mover.operations_transfer import check_block_size, since_digests, source_base
from understudy.mover.reader import Source
from understudy.mover.state import Mover


def start_estimate(mover: Mover, request: api.EstimateTransfer) -> api.WorkStarted:
    """Make the plan that a transfer would carry out, and sum it up."""
    read = request.read
    check_block_size(read.block_size)
    masks_of(read)

    def estimate(ctx: Context, _meter: Meter) -> Sums:
        return _estimate(ctx, mover, read)

    return api.WorkStarted(mover.works.start(f"estimate {read.disk}", estimate, read.replica_id))


def _estimate(ctx: Context, mover: Mover, read: api.ReadSpec) -> Sums:
    with mover.exports.explaining(read.source), ExitStack() as stack:
        base = source_base(mover, read)
        if base is not None:
            stack.enter_context(base)
        start = check_base(read, base)
        tracked = read.mode is TransferMode.INCREMENTAL
        export = Source(read.source, read.size, tracked=tracked, credentials=mover.credentials)
        stack.callback(export.close)
        content = doubting(known_content(read, start), read, start, since_digests(stack, mover, read))
        left_out = ranges_of(read.excluded, read.size)
        return sum_transfer(spec_of(read), masked(export, read), content, left_out, ctx.check)

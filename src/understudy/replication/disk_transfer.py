"""Disk transfer: one disk on its way over one or two proxies, begun again where a proxy that was restarted lost it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from understudy.context import Context
from understudy.errors import (
    LinkLost,
    MoverError,
    NotFound,
    Refused,
    TrackingLost,
    TransferError,
    UnderstudyError,
    from_fields,
)
from understudy.model.exclusion import exclusion_of
from understudy.model.job import Compression, ProxyKind
from understudy.model.session import DiskReport
from understudy.model.transfer import DiskPlan, Reason, TransferMode
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.replication.busy import bottleneck, shares
from understudy.replication.draft import HeldDraft
from understudy.replication.held import Excluding, LostTracking, TransferSpec, Works
from understudy.replication.planning import without_tracking
from understudy.replication.site import Site

# How long the other end of a lost connection may take to say why it went.
_LAST_WORDS_S = 3.0
_RATE_WINDOW_S = 10.0
# Of a failure that an end may only have suffered because the other end failed.
_LOST_THE_OTHER = (TransferError.code, LinkLost.code)


class DiskTransfer:
    """One disk under way: the work at the source proxy and, with a wire, the work at the target proxy.

    :param source: opens the disk at the source proxy; told whether that was restarted since it was opened last.
    :param sending: asked before the disk is sent: keys of the rate limits that hold.
    """

    def __init__(
        self, site: Site, spec: TransferSpec, draft: HeldDraft, plan: DiskPlan, excluding: Excluding,
        source: Callable[[bool], api.NbdSource], sending: Callable[[], tuple[str, ...]], works: Works | None = None,
    ) -> None:
        self.plan = plan
        self.works = works or Works()
        self.report = DiskReport(
            plan.name, plan.mode, plan.reason, plan.size, transport=site.transport,
            excluded=dict(exclusion_of(excluding.now, plan.name).by_kind), notes=excluding.notes.get(plan.name, ()),
        )
        if self.works.lost is not None:
            self._scan_instead(self.works.lost)
        self.ended = False
        self._site = site
        self._spec = spec
        self._draft = draft
        self._excluding = excluding
        self._source = source
        self._source_restarted = False
        self._sending = sending
        self._limits: tuple[str, ...] | None = None
        self._generation = draft.generation
        self._redirect = False
        self._heard_at = time.monotonic()
        self._earlier = self.report
        self._samples: deque[tuple[float, int]] = deque()

    # --- begin --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; where a proxy that is a service does not answer now, :meth:`follow` goes on with it.

        :raises UnderstudyError: why the transfer failed.
        """
        try:
            self._begin()
        except MoverError as exc:
            self._bear(exc)

    def revive(self, sending: Callable[[], tuple[str, ...]]) -> None:
        """Go on although it was done: the draft was opened again and does not know that the disk is complete."""
        self._sending, self._limits = sending, None
        self._heard_at = time.monotonic()
        self.ended = False

    def _begin(self) -> None:
        """Start what is not under way; may be called again when it failed in the middle."""
        if self._limits is None:
            self._limits = self._sending()
        if self.outdated:
            # The target proxy was restarted: what it has it kept, but nobody there waits for the rest.
            self.works = replace(self.works, target="")
            self._generation = self._draft.generation
        if not self._site.same_mover and not self.works.target:
            self._begin_target()
        if self._redirect and self.works.source:
            self._redirect_source()
        if not self.works.source:
            # What the source sides before it did counts too.
            self._earlier = self.report
            self.works = replace(self.works, source=self._begin_source())
        self._redirect = False

    def _begin_target(self) -> None:
        job = self._spec.job
        identity = self._site.source_proxy.identity if self._by_tls else ""
        request = api.ReceiveDisk(
            self._draft.id, self.plan.name, self.plan.size, job.block_size, identity, job.patience_s
        )
        started = self._site.target_mover.call(request, api.ReceiveStarted)
        self.works = replace(self.works, target=started.work, ticket=started.ticket, socket=started.socket)
        self._redirect = bool(self.works.source)

    def _redirect_source(self) -> None:
        request = api.RedirectSend(self.works.source, self._address())
        try:
            self._site.source_mover.call(request, api.Nothing)
        except NotFound:  # it ended since it was last looked at, by itself or with its proxy
            self._forget_ended_source(self._ask(self._site.source_mover, self.works.source, 0.0))
            self.works = replace(self.works, source="")  # what says that it runs has not yet said that it ended

    def _begin_source(self) -> str:
        job = self._spec.job
        read = read_spec(self._spec, self.plan, self._excluding, self._source(self._source_restarted))
        request: object = api.CopyDisk(read, self._draft.id)
        if not self._site.same_mover:
            request = api.SendDisk(read, self._address(), self._compression, job.connections, job.patience_s,
                                   self._limits or ())
        started = self._site.source_mover.call(request, api.WorkStarted)
        self._source_restarted = False
        return started.work

    @property
    def _by_tls(self) -> bool:
        return not self._site.by_socket

    @property
    def _compression(self) -> Compression:
        """None inside one host: there compressing costs more than the bytes that it saves."""
        return Compression.NONE if self._site.one_machine else self._spec.job.compression

    def _address(self) -> api.TargetAddress:
        proxy = self._site.target_proxy
        if not self._by_tls:
            return api.TargetAddress(self.works.socket, "", self.works.ticket)
        if not proxy.data_address:
            # No MoverError: waiting does not help.
            raise Refused(f"send disk {self.plan.name!r} to proxy {proxy.name!r}", "it has no data address",
                          f"give it one: understudy proxy set {proxy.name!r} --data-address HOST:PORT")
        return api.TargetAddress(proxy.data_address, proxy.identity, self.works.ticket)

    @property
    def outdated(self) -> bool:
        """Whether the draft was opened again since the transfer last began."""
        return self._generation != self._draft.generation

    @property
    def _begun(self) -> bool:
        return bool(self.works.source) and (self._site.same_mover or bool(self.works.target)) and not self._redirect

    # --- follow -------------------------------------------------------------------------------------------------------

    def follow(self, wait_s: float) -> None:
        """Look at both ends once, waiting up to ``wait_s`` seconds for news, and begin again what a restart ended.

        :raises UnderstudyError: why the transfer failed.
        """
        try:
            near, far = self._look(wait_s)
        except MoverError as exc:
            self._bear(exc)
            return
        self._heard_at = time.monotonic()
        if near is not None and (far is not None or self._site.same_mover):
            self._note(near, far)

    def _look(self, wait_s: float) -> tuple[api.WorkStatus | None, api.WorkStatus | None]:
        if self.outdated or not self._begun:
            self._forget_ended_source(self._ask(self._site.source_mover, self.works.source, 0.0))
            self._begin()
        near = self._ask(self._site.source_mover, self.works.source, wait_s)
        ended = near is not None and near.state is not api.WorkState.RUNNING
        far: api.WorkStatus | None = None
        if not self._site.same_mover:
            # With the source end done, wait for the target end: it is asked again and again otherwise.
            far = self._ask(self._site.target_mover, self.works.target, wait_s if ended else 0.0)
        target_end = near if self._site.same_mover else far
        if target_end is None:
            self._draft.reopen(self._generation)
        if target_end is None or near is None:
            self._forget_ended_source(near)
            self._begin()
        return near, far

    def _forget_ended_source(self, near: api.WorkStatus | None) -> None:
        """A source side that ended cannot be redirected: another one must send what the target has not."""
        if near is None and self.works.source:
            self._source_restarted = True
            self._site.resources.restarted(self._site.source_proxy)
        if near is None or near.state is not api.WorkState.RUNNING:
            self.works = replace(self.works, source="")

    def _ask(self, mover: MoverClient, work: str, wait_s: float) -> api.WorkStatus | None:
        """How far an end is; None if its proxy does not know it any more."""
        if not work:
            return None
        try:
            return mover.call(api.WorkQuery(work, wait_s), api.WorkStatus)
        except NotFound:
            return None

    def _bear(self, problem: MoverError) -> None:
        """A proxy does not answer: a service comes back, a child process does not."""
        ends = ((self._site.source_proxy, self._site.source_mover), (self._site.target_proxy, self._site.target_mover))
        children = [mover for proxy, mover in ends if proxy.kind is ProxyKind.CHILD]
        if len(children) == len(ends):
            raise problem
        for child in children:
            child.call(api.About(), api.MoverInfo)
        silent_s = time.monotonic() - self._heard_at
        if silent_s > self._spec.job.patience_s:
            raise MoverError(self._what, f"{problem.what}: {problem.why}, for {silent_s:.0f} s", problem.todo)
        waiting = f"{problem.what}: {problem.why}, since {silent_s:.0f} s"
        self.report = replace(self.report, waiting=waiting, rate=0.0)
        self._site.journal.disk(self.report, final=False)
        time.sleep(0.2)

    def _note(self, near: api.WorkStatus, far: api.WorkStatus | None) -> None:
        """Take in what both ends say."""
        if self._tracking_lost(near):
            return
        if far is not None:
            near, far = self._last_words(near, far)
            self._raise_failure(near, far)
        self._raise_failure(near)
        found = shares(near.progress.busy or {}, (far.progress.busy or {}) if far is not None else {})
        self.ended = near.state is not api.WorkState.RUNNING and (
            far is None or far.state is not api.WorkState.RUNNING
        )
        progress, earlier, lost = near.progress, self._earlier, self.works.lost
        self.report = replace(
            self.report, read_bytes=earlier.read_bytes + progress.read, sent_bytes=earlier.sent_bytes + progress.sent,
            wire_bytes=earlier.wire_bytes + progress.wire, zero_bytes=progress.zero,
            processed_bytes=progress.processed, seconds=round(earlier.seconds + near.seconds, 3), busy=found,
            bottleneck=bottleneck(found), reconnects=earlier.reconnects + progress.reconnects,
            # What a source side before it sent is no gain by an earlier session.
            resumed_bytes=max(earlier.resumed_bytes, progress.saved - earlier.sent_bytes),
            checked_blocks=progress.checked if lost is None else lost.checked_blocks,
            mismatched_blocks=progress.mismatched if lost is None else lost.mismatched_blocks,
            waiting="" if self.ended else progress.waiting or (far.progress.waiting if far is not None else ""),
            rate=0.0 if self.ended else self._rate(progress.processed),
        )
        self._site.journal.disk(self.report, self.ended)
        if self.ended and lost is None and progress.mismatched:
            self._site.journal.warn(f"disk {self.plan.name}: {progress.mismatched} of {progress.checked} blocks that "
                                    "tracking calls unchanged had changed; the scan found them all")

    def _tracking_lost(self, near: api.WorkStatus) -> bool:
        """Whether the source side ended because the dirty map cannot be used: then the same snapshot is scanned (S5).

        It ended before anything was sent, so the target side still waits.
        """
        error = near.error
        found = from_fields(error.code, error.what, error.why, error.todo) if error is not None else None
        if not isinstance(found, TrackingLost) or self.plan.mode is not TransferMode.INCREMENTAL:
            return False
        lost = LostTracking(Reason(found.reason), near.progress.checked, near.progress.mismatched)
        self.works = replace(self.works, source="", lost=lost)
        self._scan_instead(lost)
        self._site.journal.warn(f"disk {self.plan.name}: {found.why}; every block is compared with its digest instead")
        self._site.journal.disk(self.report, final=False)
        return True

    def _scan_instead(self, lost: LostTracking) -> None:
        (self.plan,) = without_tracking((self.plan,), lost.reason)
        self.report = replace(
            self.report, mode=self.plan.mode, reason=self.plan.reason, checked_blocks=lost.checked_blocks,
            mismatched_blocks=lost.mismatched_blocks,
        )

    def _rate(self, processed: int) -> float:
        """Bytes a second, over the last ten."""
        now = time.monotonic()
        self._samples.append((now, processed))
        while now - self._samples[0][0] > _RATE_WINDOW_S:
            self._samples.popleft()
        then, before = self._samples[0]
        return max(0.0, (processed - before) / (now - then)) if now - then > 0.5 else 0.0

    def _last_words(self, near: api.WorkStatus, far: api.WorkStatus) -> tuple[api.WorkStatus, api.WorkStatus]:
        """Both ends; one that only says that it lost the other is not believed before the other was heard."""
        if _lost_the_other(near) and far.state is api.WorkState.RUNNING:
            far = self._ask(self._site.target_mover, self.works.target, _LAST_WORDS_S) or far
        elif _lost_the_other(far) and near.state is api.WorkState.RUNNING:
            near = self._ask(self._site.source_mover, self.works.source, _LAST_WORDS_S) or near
        return near, far

    def _raise_failure(self, *statuses: api.WorkStatus) -> None:
        """Raise what made the transfer fail: of two failed ends the one that did not merely lose the other."""
        errors = [status.error for status in statuses if status.error is not None]
        if errors:
            cause = next((error for error in errors if error.code not in _LOST_THE_OTHER), errors[0])
            # A proxy knows the other one by its address only.
            what = self._what if cause.code == LinkLost.code else cause.what
            raise from_fields(cause.code, what, cause.why, cause.todo)

    @property
    def _what(self) -> str:
        source, target = self._site.source_proxy.name, self._site.target_proxy.name
        return f"copy disk {self.plan.name!r} from proxy {source!r} to proxy {target!r}"

    def stop(self, ctx: Context) -> None:
        """Stop both ends."""
        stop_works(ctx, self._site, self.plan.name, self.works)


def read_spec(spec: TransferSpec, plan: DiskPlan, excluding: Excluding, source: api.NbdSource) -> api.ReadSpec:
    """How the source proxy processes a disk."""
    if plan.mode is not TransferMode.INCREMENTAL and plan.reason is not Reason.FORCED:
        source = replace(source, dirty_context="")  # it is not to be trusted
    return excluding.applied(api.ReadSpec(
        source=source, disk=plan.name, size=plan.size, mode=plan.mode,
        block_size=spec.job.block_size, chained=plan.chained, replica_id=spec.replica_id,
        base_point=spec.base_point if plan.chained else "", point=spec.point,
        since_point=plan.since_point, suspect=plan.suspect,
    ))


def stop_works(ctx: Context, site: Site, disk: str, works: Works) -> None:
    """Stop both ends of a transfer; a proxy that is gone has stopped already."""
    for mover, work in ((site.source_mover, works.source), (site.target_mover, works.target)):
        if work:
            try:
                mover.call(api.CancelWork(work), api.Nothing)
            except UnderstudyError as exc:
                ctx.log(__name__).warning("stop of disk %s: %s", disk, exc)


def _lost_the_other(end: api.WorkStatus) -> bool:
    return end.error is not None and end.error.code in _LOST_THE_OTHER

"""Operations that list, and remove, what dead sessions left."""

from __future__ import annotations

import stat
from pathlib import Path

from understudy.context import Context
from understudy.errors import DatastoreError, UnderstudyError, UsageError
from understudy.mover import api
from understudy.mover.drafts import store_of
from understudy.mover.images import files_below
from understudy.mover.meter import Meter
from understudy.mover.operations_target import end_draft
from understudy.mover.state import Mover
from understudy.storage import list_replicas
from understudy.storage.values import StoreLeftovers

DELTA = ".delta"


def list_tagged(_mover: Mover, request: api.ListTagged) -> api.TaggedFiles:
    """Files of ours in some directories, and whether a VM needs them."""
    if not request.tag:
        raise UsageError("list leftovers", "no tag was given")
    paths = sorted(path for directory in set(request.directories) for path in _ours(Path(directory), request.tag))
    deltas = any(path.name.endswith(DELTA) for path in paths)
    used = files_below(request.images) if deltas else set()
    return api.TaggedFiles(tuple(
        api.TaggedFile(str(path.parent), path.name, path.name.endswith(DELTA) and (used is None or path in used))
        for path in paths
    ))  # fmt: skip


def _ours(directory: Path, tag: str) -> list[Path]:
    try:
        found = [path for path in directory.iterdir() if path.name.startswith(tag)]
        return [path for path in found if _is_file_or_socket(path)]
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise DatastoreError(f"list leftovers in {directory}", exc.strerror or str(exc)) from exc


def _is_file_or_socket(path: Path) -> bool:
    mode = path.lstat().st_mode
    return stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def query_held(mover: Mover, _request: api.HeldQuery) -> api.HeldFacts:
    """What this proxy still runs."""
    return api.HeldFacts(mover.exports.tags(), mover.works.groups())


def list_copies(mover: Mover, _request: api.ListCopies) -> api.DigestCopyList:
    """The source side digest copies."""
    return api.DigestCopyList(tuple(mover.copies.list_all()))


def survey_datastore(_mover: Mover, request: api.SurveyDatastore) -> api.DatastoreSurvey:
    """Every replica of a datastore; one that cannot be read hides no other."""
    datastore = Path(request.datastore)
    if not datastore.is_dir():
        return api.DatastoreSurvey(exists=False, replicas=())
    names = list_replicas(request.kind, datastore)
    refs = [api.ReplicaRef(request.kind, request.datastore, name) for name in names]
    return api.DatastoreSurvey(exists=True, replicas=tuple(_survey(ref) for ref in refs))


def _survey(ref: api.ReplicaRef) -> api.SurveyedReplica:
    store = store_of(ref)
    try:
        return api.SurveyedReplica(ref.name, store.load(), store.leftovers(), store.last_attempt())
    except UnderstudyError as exc:
        return api.SurveyedReplica(ref.name, None, StoreLeftovers(), problem=str(exc))


def sweep_replica(mover: Mover, request: api.SweepReplica) -> api.WorkStarted:
    """Sweep a replica, in the background: a merge may take long."""
    for older in mover.drafts.superseded(request.owner.ref, request.owner.attempt):
        end_draft(mover, older.id, keep=True)

    def sweep(_ctx: Context, _meter: Meter) -> None:
        with mover.drafts.owned(request.owner) as store:
            store.sweep(keep_continuable=request.keep_continuable)

    return api.WorkStarted(mover.works.start(f"sweep {request.owner.ref.name}", sweep))

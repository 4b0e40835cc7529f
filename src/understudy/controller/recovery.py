"""Sessions that a dead controller left behind: which can be gone on with, and the end of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from understudy.controller import interrupted, journal, lock
from understudy.controller.database import Database
from understudy.controller.records import ClaimedSession
from understudy.replication.held import HeldTask


def resumable_sessions(database: Database, is_held: Callable[[HeldTask], bool]) -> tuple[ClaimedSession, ...]:
    """Sessions of a dead controller that can be gone on with, each with the tasks for which that is true.

    :param is_held: whether the proxies still have what a task holds.
    """
    found = []
    for session in interrupted.held_sessions(database):
        resumed = tuple(task for task in session.resumed if is_held(task.held))
        if resumed:
            found.append(replace(session, resumed=resumed))
    return tuple(found)


def end_dead_sessions(database: Database, stays: Callable[[ClaimedSession], bool]) -> tuple[int, ...]:
    """End what a dead controller left running; nothing happens while a controller is alive.

    Every controller does this when it starts. A command that would be refused because of such a session must do it
    too: nobody else would end the session, and the operator would wait for it in vain.

    :param stays: asked of each session that holds something to go on with: whether it is left to the next controller.
    :return: what was ended.
    """
    if not journal.has_session(database, running=True):
        return ()
    held = lock.try_acquire(database.home)
    if held is None:
        return ()
    with held:
        kept = [session.id for session in interrupted.held_sessions(database) if stays(session)]
        return interrupted.fail_dead_sessions(database, kept)

"""Sessions that a dead controller left behind, and their end, by a command that must not be refused because of them."""

from __future__ import annotations

from understudy.controller import journal, lock
from understudy.controller.database import Database


def end_dead_sessions(database: Database) -> None:
    """End what a dead controller left running; nothing happens while a controller is alive.

    Every controller does this when it starts. A command that would be refused because of such a session must do it
    too: nobody else would end the session, and the operator would wait for it in vain.
    """
    if not journal.has_session(database, running=True):
        return
    held = lock.try_acquire(database.home)
    if held is not None:
        with held:
            journal.fail_dead_sessions(database)

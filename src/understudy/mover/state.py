"""What a mover process holds: its drafts, exports, digest copies and long operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from understudy.certificates import Credentials
from understudy.mover.copies import DigestCopies
from understudy.mover.drafts import Drafts
from understudy.mover.exports import Exports
from understudy.mover.work import Works

END_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Mover:
    """State of this process.

    :ivar run_dir: private directory for sockets; what is in it does not outlive the process.
    :ivar credentials: what it proves its identity with, if it talks to other hosts.
    :ivar identity: the name in its certificate; empty without one.
    :ivar forget: destroys the credentials and ends the process; a child process of the controller has no such act.
    """

    name: str
    run_dir: Path
    copies: DigestCopies
    drafts: Drafts
    exports: Exports
    works: Works
    credentials: Credentials | None = None
    identity: str = ""
    forget: Callable[[], None] | None = None

    @classmethod
    def make(
        cls, name: str, state_dir: Path, run_dir: Path, credentials: Credentials | None = None, identity: str = "",
        forget: Callable[[], None] | None = None,
    ) -> Mover:  # fmt: skip
        """A mover that keeps digest copies below ``state_dir``."""
        copies = DigestCopies(state_dir / "digests")
        return cls(name, run_dir, copies, Drafts(), Exports(run_dir), Works(), credentials, identity, forget)

    def close(self) -> None:
        """Stop everything. Drafts whose transfer does not stop in time stay for the next session's sweep."""
        if self.works.cancel_all(END_TIMEOUT_S):
            for key in self.drafts.ids():
                self.drafts.release(key)
        self.exports.close_all()

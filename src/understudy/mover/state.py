"""What a mover process holds: its drafts, exports, digest copies and long operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from understudy.certificates import Credentials
from understudy.mover.copies import DigestCopies
from understudy.mover.data_port import DataPort
from understudy.mover.drafts import Drafts
from understudy.mover.exports import Exports
from understudy.mover.link import Link
from understudy.mover.throttle import Throttles
from understudy.mover.work import Works

END_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Mover:
    """State of this process.

    :ivar run_dir: private directory for sockets; what is in it does not outlive the process.
    :ivar links: where running source sides send to, by the id of their work.
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
    data: DataPort
    throttles: Throttles
    links: dict[str, Link]
    credentials: Credentials | None = None
    identity: str = ""
    forget: Callable[[], None] | None = None

    @property
    def data_socket(self) -> Path:
        """Where proxies of this machine bring data."""
        return self.run_dir / "data.sock"

    @classmethod
    def make(
        cls, name: str, state_dir: Path, run_dir: Path, credentials: Credentials | None = None, identity: str = "",
        forget: Callable[[], None] | None = None,
    ) -> Mover:  # fmt: skip
        """A mover that keeps digest copies below ``state_dir``, and accepts data from proxies of this machine.

        :raises MoverError: if it cannot listen.
        """
        mover = cls(name, run_dir, DigestCopies(state_dir / "digests"), Drafts(), Exports(run_dir), Works(), DataPort(),
                    Throttles(), {}, credentials, identity, forget)
        mover.data.listen_unix(mover.data_socket)
        return mover

    def close(self) -> None:
        """Stop everything. Drafts whose transfer does not stop in time stay for the next session."""
        self.data.close()
        self.drafts.stop_writing()
        if self.works.cancel_all(END_TIMEOUT_S):
            for key in self.drafts.ids():
                self.drafts.release(key, keep=True)
        self.exports.close_all()
        self.data_socket.unlink(missing_ok=True)

"""Secrets at rest: encrypted with a key of the home, so that a copy of the database alone tells nothing.

The key lies in ``<home>/secrets.key``, made when first needed. If it is lost, credentials must be stored again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from understudy.certificates import write_private
from understudy.errors import DatabaseError

KEY_FILE = "secrets.key"


def seal(home: Path, secret: str) -> str:
    """``secret`` as it may be stored.

    :raises DatabaseError: if there is no key and none can be made, or it is damaged.
    """
    path = home / KEY_FILE
    try:
        if not path.exists():
            _make_key(path)
    except OSError as exc:
        raise DatabaseError(f"write {path}", exc.strerror or str(exc), "check the permissions of the home") from exc
    return _cipher(path).encrypt(secret.encode()).decode("ascii")


def unseal(home: Path, sealed: str) -> str:
    """The secret in what :func:`seal` made.

    :raises DatabaseError: if the key is lost, damaged, or another one.
    """
    path = home / KEY_FILE
    try:
        return _cipher(path).decrypt(sealed.encode()).decode()
    except InvalidToken as exc:
        raise DatabaseError("read a stored secret", f"it was encrypted with another key than {path}",
                            "restore that file, or store the credentials again") from exc


def _make_key(path: Path) -> None:
    """Make the key, unless another process does at this moment: two keys would lose what the first one encrypted."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    write_private(new, Fernet.generate_key())
    try:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(new)
    finally:
        new.unlink()


def _cipher(path: Path) -> Fernet:
    try:
        return Fernet(path.read_bytes())
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise DatabaseError(f"read the key {path}", why, "restore that file, or store the credentials again") from exc

"""How a survey's question and answer travel in the process without rights: as :mod:`understudy.mover.protocol` has it,
by the JSON of the standard library alone.

To import and prepare what checks values at borders took half of that process's time. It believes whoever asks; what it
answers is checked there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from understudy.errors import UsageError
from understudy.model.exclusion import DiskSurvey, Exclusion
from understudy.mover.api import NbdSource, SurveyDisks, SurveyedDisk, SurveyedDisks


def decode_request(content: bytes) -> SurveyDisks:
    """The request that ``content`` is.

    :raises UsageError: if it is none.
    """
    try:
        plain = json.loads(content)
        disks = tuple(
            SurveyedDisk(disk["name"], NbdSource(**disk["source"]), disk["size"]) for disk in plain.pop("disks")
        )
        former = tuple(Exclusion(**exclusion) for exclusion in plain.pop("former"))
        return SurveyDisks(disks=disks, former=former, masks=tuple(plain.pop("masks")), **plain)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise UsageError("value SurveyDisks", f"{exc!r}", "use the same version everywhere") from exc


def encode_answer(surveys: Sequence[DiskSurvey]) -> bytes:
    """The answer of ``surveys``; what is no Unicode in a guest's names is replaced."""
    text = json.dumps(SurveyedDisks(tuple(surveys)), ensure_ascii=False, default=vars)
    return text.encode(errors="surrogatepass").decode(errors="replace").encode()

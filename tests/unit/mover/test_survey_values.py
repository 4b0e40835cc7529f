"""The process without rights reads and writes the values of the control protocol, though not by the same code."""

from __future__ import annotations

import json

import pytest

from understudy.errors import UsageError
from understudy.model.exclusion import DiskSurvey, Exclusion, Kind, pack
from understudy.model.extent import Extent
from understudy.mover.api import NbdSource, SurveyDisks, SurveyedDisk, SurveyedDisks
from understudy.mover.protocol import decode, encode
from understudy.mover.survey_values import decode_request, encode_answer
from understudy.units import MIB

FULL = Exclusion("vda", pack([Extent(MIB, MIB)]), {Kind.SWAP: 4096, Kind.FREE: MIB - 4096}, {"1 uuid:/ä\n": "digest"})
REQUEST = SurveyDisks(
    (SurveyedDisk("vda", NbdSource("/run/ä.sock", "disk", "qemu:dirty-bitmap:b", "host:10809"), 3 * MIB),
     SurveyedDisk("vdb", NbdSource("", "", ""), 0)),
    swap=True, masks=("/tmp/**", "C:\\Temp\\*"), free=True, quiesced=False, former=(FULL, Exclusion("vdb")),
)  # fmt: skip


@pytest.mark.parametrize("request_", [REQUEST, SurveyDisks((), False, (), False, True, ())])
def test_a_request_is_read_as_it_was_sent(request_: SurveyDisks) -> None:
    assert decode_request(encode(request_)) == request_


@pytest.mark.parametrize("surveys", [(), (DiskSurvey(FULL, 7 * MIB, ("note ä", 'with "quotes"')),
                                          DiskSurvey(Exclusion("vdb")))])  # fmt: skip
def test_an_answer_is_read_as_it_was_found(surveys: tuple[DiskSurvey, ...]) -> None:
    assert decode(SurveyedDisks, encode_answer(surveys)) == SurveyedDisks(surveys)


@pytest.mark.parametrize("name", ["latin \udcff", "\ud800", "\ud83d\ude00", "\udc80\U0001f600\0"])
def test_a_file_whose_name_is_no_unicode_is_named_as_by_the_protocol(name: str) -> None:
    found = SurveyedDisks((DiskSurvey(Exclusion("vda", candidates={name: "digest"})),))
    answer = decode(SurveyedDisks, encode_answer(found.surveys))
    assert answer == decode(SurveyedDisks, encode(found))
    assert name not in answer.surveys[0].exclusion.candidates


@pytest.mark.parametrize("change", [{"former": [{"disc": "vda"}]}, {"masks": None}, {"masc": []}, {"disks": [{}]}])
def test_a_request_of_another_version_is_refused(change: dict[str, object]) -> None:
    plain = json.loads(encode(REQUEST)) | change
    with pytest.raises(UsageError, match="use the same version everywhere"):
        decode_request(json.dumps(plain).encode())


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"{}"])
def test_what_is_no_request_is_refused(content: bytes) -> None:
    with pytest.raises(UsageError):
        decode_request(content)

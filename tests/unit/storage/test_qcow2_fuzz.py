"""A short run of the fuzz target of stored files; long ones are made by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.model.exclusion import pack
from understudy.model.extent import Extent

from .test_qcow2_manifest import DOCUMENT


def test_a_short_run_of_the_fuzz_target_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: python -m pip install atheris")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "record").write_bytes(b"\x01" + json.dumps(json.loads(DOCUMENT)).encode())
    packed = pack([Extent(65536, 65536)])
    left_out = {"disk": "vda", "packed": packed, "by_kind": {"swap": 9}, "candidates": {"a": "b"}}
    document = {"understudy": "exclusions", "format": 1, "point": "p1", "disks": [left_out]}
    (corpus / "exclusions").write_bytes(b"\x04" + json.dumps(document).encode())
    (corpus / "digests").write_bytes(b"\x00" + bytes(4) + (5 << 16).to_bytes(8, "little") + bytes(12) + bytes(64 + 80))
    header = json.dumps({"format": 1, "point": "p1", "size": 1 << 20, "backing": "", "mark": "m"}).encode()
    (corpus / "journal").write_bytes(b"\x03" + header + b"\xff\xfe" + (9).to_bytes(8, "big") + bytes(8))
    command = [sys.executable, "-m", "tests.fuzz.stored_files", str(corpus), "-seed=1", "-runs=4000",
               "-max_len=4000", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False,
                          env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 4000 runs" in done.stderr

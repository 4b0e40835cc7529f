"""Credentials for guests: who may log in to the guest of a VM."""

from __future__ import annotations

from understudy.controller.database import Database
from understudy.guests.ssh import SshAccess
from understudy.model.inventory import Vm
from understudy.model.job import Job


def ssh_access(database: Database, job: Job, vm: Vm) -> SshAccess | None:
    """How the guest of ``vm`` is reached by SSH; None if ``job`` names no credential for it."""
    del database, job, vm
    return None

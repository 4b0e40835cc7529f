"""Operations: one table from request type to handler."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from understudy.mover import api
from understudy.mover.state import Mover

Handler = Callable[[Mover, Any], Any]

# The request types of the protocol, and in which of our modules the handler of each is. Both are imported when such a
# request comes first: no session needs all, and each of its proxies is a process that starts anew.
HANDLERS = {
    "About": "operations_identity:query_about",
    "IdentityQuery": "operations_identity:query_identity",
    "RequestCertificate": "operations_identity:request_certificate",
    "InstallCertificate": "operations_identity:install_certificate",
    "ForgetController": "operations_identity:forget_controller",
    "PrepareScratch": "operations_source:prepare_scratch",
    "ProbeImage": "operations_source:probe_image",
    "RemoveBitmap": "operations_source:remove_bitmap",
    "ReadNvram": "operations_source:read_nvram",
    "OpenExport": "operations_source:open_export",
    "OpenLibraryExport": "operations_source:open_library_export",
    "ProbeLibrary": "operations_source:probe_library",
    "ReadSample": "operations_source:read_sample",
    "CloseExport": "operations_source:close_export",
    "EndLeftovers": "operations_source:end_leftovers",
    "RemoveTagged": "operations_source:remove_tagged",
    "DigestRef": "operations_source:query_digests",
    "KeepDigests": "operations_source:keep_digests",
    "DropDigests": "operations_source:drop_digests",
    "CheckDatastore": "operations_target:check_datastore",
    "ListReplicas": "operations_target:query_replicas",
    "InspectReplica": "operations_target:inspect_replica",
    "ReadExclusions": "operations_target:read_exclusions",
    "BeginPoint": "operations_target:begin_point",
    "AttachDisks": "operations_target:attach_disks",
    "SealPoint": "operations_target:seal_point",
    "DraftQuery": "operations_target:query_draft",
    "PublishPoint": "operations_target:publish_point",
    "ReleaseDraft": "operations_target:release_draft",
    "RetirePoints": "operations_target:retire_points",
    "ForgetPoints": "operations_target:forget_points",
    "BindHead": "operations_target:bind_head",
    "ProbeConversion": "conversion:probe_conversion",
    "ConvertHead": "conversion:start_conversion",
    "SetState": "operations_target:set_state",
    "SetIdentity": "operations_target:set_identity",
    "RemoveReplica": "operations_target:remove_replica",
    "RebuildReplica": "rebuild:start_rebuild_replica",
    "MarkDatastore": "operations_target:mark_datastore",
    "ListTagged": "operations_leftovers:list_tagged",
    "HeldQuery": "operations_leftovers:query_held",
    "ListCopies": "operations_leftovers:list_copies",
    "SurveyDatastore": "operations_leftovers:survey_datastore",
    "SweepReplica": "operations_leftovers:sweep_replica",
    "VerifyPoint": "operations_verify:start_verify",
    "RebuildDigests": "operations_verify:start_rebuild",
    "SurveyDisks": "operations_survey:start_survey",
    "EstimateTransfer": "operations_estimate:start_estimate",
    "CopyDisk": "operations_transfer:start_copy",
    "ReceiveDisk": "operations_transfer:start_receive",
    "SendDisk": "operations_transfer:start_send",
    "RedirectSend": "operations_transfer:redirect_send",
    "SetRates": "operations_transfer:set_rates",
    "WorkQuery": "operations_transfer:query_work",
    "CancelWork": "operations_transfer:cancel_work",
}


@dataclass(frozen=True)
class Operation:
    """What is done at a request."""

    request_type: type
    handler: Handler


def operation(name: str) -> Operation:
    """The operation of the request type ``name``, one of :data:`HANDLERS`."""
    module, _, function = HANDLERS[name].partition(":")
    return Operation(getattr(api, name), getattr(importlib.import_module(f"understudy.mover.{module}"), function))


def load_all() -> None:
    """Import every operation now.

    To be called by a process that lives long: when the program is upgraded meanwhile, it must not get one half of
    itself from the old version and one from the new.
    """
    for name in HANDLERS:
        operation(name)

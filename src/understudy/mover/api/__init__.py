"""The values of the control protocol between controller and mover; each operation is a request and a response.

Long operations answer with a work id; :class:`WorkStatus` tells how far it is. The values of a module are imported when
one of them is first asked for: making all classes takes 0.1 s of processor time, and few processes need all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.mover.api.common import (
        About,
        MoverInfo,
        Nothing,
        ReplicaRef,
    )
    from understudy.mover.api.export import (
        NbdSource,
    )
    from understudy.mover.api.identity import (
        CertificateRequest,
        Enrolled,
        EnrolmentRequest,
        ForgetController,
        IdentityFacts,
        IdentityQuery,
        InstallCertificate,
        RequestCertificate,
    )
    from understudy.mover.api.leftovers import (
        DatastoreSurvey,
        DigestCopy,
        DigestCopyList,
        HeldFacts,
        HeldQuery,
        ListCopies,
        ListTagged,
        SurveyDatastore,
        SurveyedReplica,
        SweepReplica,
        TaggedFile,
        TaggedFiles,
    )
    from understudy.mover.api.source import (
        CloseExport,
        DigestHolding,
        DigestRef,
        DropDigests,
        EndLeftovers,
        ImageFacts,
        KeepDigests,
        LibraryFacts,
        NvramContent,
        OpenedExport,
        OpenExport,
        OpenLibraryExport,
        PrepareScratch,
        ProbeImage,
        ProbeLibrary,
        ReadNvram,
        ReadSample,
        RemoveBitmap,
        Removed,
        RemoveTagged,
        SampleRead,
        ScratchFacts,
    )
    from understudy.mover.api.survey import (
        SurveyDisks,
        SurveyedDisk,
        SurveyedDisks,
    )
    from understudy.mover.api.target import (
        AttachDisks,
        BeginPoint,
        BindHead,
        CheckDatastore,
        ConversionFacts,
        ConvertHead,
        DatastoreAnswer,
        DatastoreMarker,
        DraftHolding,
        DraftOpened,
        DraftQuery,
        ForgetPoints,
        HeadBound,
        InspectReplica,
        ListReplicas,
        MarkDatastore,
        OwnedReplica,
        PointExclusions,
        ProbeConversion,
        PublishedPoint,
        PublishPoint,
        ReadExclusions,
        RebuildDigests,
        RebuildReplica,
        ReleaseDraft,
        RemoveReplica,
        ReplicaFacts,
        ReplicaNames,
        RetirePoints,
        SealPoint,
        SetIdentity,
        SetState,
        VerifyPoint,
    )
    from understudy.mover.api.transfer import (
        CopyDisk,
        EstimateTransfer,
        RateLimit,
        ReadSpec,
        ReceiveDisk,
        ReceiveStarted,
        RedirectSend,
        SendDisk,
        SetRates,
        TargetAddress,
    )
    from understudy.mover.api.work import (
        CancelWork,
        ErrorFields,
        Progress,
        VerifiedDisk,
        WorkQuery,
        WorkStarted,
        WorkState,
        WorkStatus,
    )

__all__ = [
    "About",
    "AttachDisks",
    "BeginPoint",
    "BindHead",
    "CancelWork",
    "CertificateRequest",
    "CheckDatastore",
    "CloseExport",
    "ConversionFacts",
    "ConvertHead",
    "CopyDisk",
    "DatastoreAnswer",
    "DatastoreMarker",
    "DatastoreSurvey",
    "DigestCopy",
    "DigestCopyList",
    "DigestHolding",
    "DigestRef",
    "DraftHolding",
    "DraftOpened",
    "DraftQuery",
    "DropDigests",
    "EndLeftovers",
    "Enrolled",
    "EnrolmentRequest",
    "ErrorFields",
    "EstimateTransfer",
    "ForgetController",
    "ForgetPoints",
    "HeadBound",
    "HeldFacts",
    "HeldQuery",
    "IdentityFacts",
    "IdentityQuery",
    "ImageFacts",
    "InspectReplica",
    "InstallCertificate",
    "KeepDigests",
    "LibraryFacts",
    "ListCopies",
    "ListReplicas",
    "ListTagged",
    "MarkDatastore",
    "MoverInfo",
    "NbdSource",
    "Nothing",
    "NvramContent",
    "OpenExport",
    "OpenLibraryExport",
    "OpenedExport",
    "OwnedReplica",
    "PointExclusions",
    "PrepareScratch",
    "ProbeConversion",
    "ProbeImage",
    "ProbeLibrary",
    "Progress",
    "PublishPoint",
    "PublishedPoint",
    "RateLimit",
    "ReadExclusions",
    "ReadNvram",
    "ReadSample",
    "ReadSpec",
    "RebuildDigests",
    "RebuildReplica",
    "ReceiveDisk",
    "ReceiveStarted",
    "RedirectSend",
    "ReleaseDraft",
    "RemoveBitmap",
    "RemoveReplica",
    "RemoveTagged",
    "Removed",
    "ReplicaFacts",
    "ReplicaNames",
    "ReplicaRef",
    "RequestCertificate",
    "RetirePoints",
    "SampleRead",
    "ScratchFacts",
    "SealPoint",
    "SendDisk",
    "SetIdentity",
    "SetRates",
    "SetState",
    "SurveyDatastore",
    "SurveyDisks",
    "SurveyedDisk",
    "SurveyedDisks",
    "SurveyedReplica",
    "SweepReplica",
    "TaggedFile",
    "TaggedFiles",
    "TargetAddress",
    "VerifiedDisk",
    "VerifyPoint",
    "WorkQuery",
    "WorkStarted",
    "WorkState",
    "WorkStatus",
]

# Where each value is: the imports above are for type checkers alone.
_NAMES = {
    "common": "About MoverInfo Nothing ReplicaRef",
    "export": "NbdSource",
    "identity": (
        "CertificateRequest Enrolled EnrolmentRequest ForgetController IdentityFacts IdentityQuery "
        "InstallCertificate RequestCertificate"
    ),
    "leftovers": (
        "DatastoreSurvey DigestCopy DigestCopyList HeldFacts HeldQuery ListCopies ListTagged SurveyDatastore "
        "SurveyedReplica SweepReplica TaggedFile TaggedFiles"
    ),
    "source": (
        "CloseExport DigestHolding DigestRef DropDigests EndLeftovers ImageFacts KeepDigests LibraryFacts "
        "NvramContent OpenExport OpenLibraryExport OpenedExport PrepareScratch ProbeImage ProbeLibrary ReadNvram "
        "ReadSample RemoveBitmap RemoveTagged Removed SampleRead ScratchFacts"
    ),
    "survey": "SurveyDisks SurveyedDisk SurveyedDisks",
    "target": (
        "AttachDisks BeginPoint BindHead CheckDatastore ConversionFacts ConvertHead DatastoreAnswer "
        "DatastoreMarker DraftHolding DraftOpened DraftQuery ForgetPoints HeadBound InspectReplica ListReplicas "
        "MarkDatastore OwnedReplica PointExclusions ProbeConversion PublishPoint PublishedPoint ReadExclusions "
        "RebuildDigests RebuildReplica ReleaseDraft RemoveReplica ReplicaFacts ReplicaNames RetirePoints "
        "SealPoint SetIdentity SetState VerifyPoint"
    ),
    "transfer": (
        "CopyDisk EstimateTransfer RateLimit ReadSpec ReceiveDisk ReceiveStarted RedirectSend SendDisk SetRates "
        "TargetAddress"
    ),
    "work": "CancelWork ErrorFields Progress VerifiedDisk WorkQuery WorkStarted WorkState WorkStatus",
}
_MODULES = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names.split()}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
        return value

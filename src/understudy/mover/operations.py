"""Operations: one table from request type to handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from understudy.mover import api, conversion
from understudy.mover import operations_estimate as estimate
from understudy.mover import operations_identity as identity
from understudy.mover import operations_leftovers as leftovers
from understudy.mover import operations_source as source
from understudy.mover import operations_survey as survey
from understudy.mover import operations_target as target
from understudy.mover import operations_transfer as transfer
from understudy.mover import operations_verify as verify
from understudy.mover.about import about
from understudy.mover.images import probe_image, remove_bitmap
from understudy.mover.library_probe import probe_library
from understudy.mover.rebuild import start_rebuild_replica
from understudy.mover.state import Mover
from understudy.mover.throttle import Throttles

Handler = Callable[[Mover, Any], Any]


def _set_rates(throttles: Throttles, request: api.SetRates) -> api.Nothing:
    throttles.set(request.limits)
    return api.Nothing()


HANDLERS: dict[type, Handler] = {
    api.About: lambda mover, _request: about(mover.name, mover.identity),
    api.IdentityQuery: identity.query_identity,
    api.RequestCertificate: identity.request_certificate,
    api.InstallCertificate: identity.install_certificate,
    api.ForgetController: identity.forget_controller,
    api.PrepareScratch: source.prepare_scratch,
    api.ProbeImage: lambda _mover, request: probe_image(request),
    api.RemoveBitmap: lambda _mover, request: remove_bitmap(request),
    api.ReadNvram: source.read_nvram,
    api.OpenExport: source.open_export,
    api.OpenLibraryExport: source.open_library_export,
    api.ProbeLibrary: lambda _mover, request: probe_library(request),
    api.ReadSample: source.read_sample,
    api.CloseExport: source.close_export,
    api.EndLeftovers: source.end_leftovers,
    api.RemoveTagged: source.remove_tagged,
    api.DigestRef: source.query_digests,
    api.KeepDigests: source.keep_digests,
    api.DropDigests: source.drop_digests,
    api.CheckDatastore: target.check_datastore,
    api.ListReplicas: target.query_replicas,
    api.InspectReplica: target.inspect_replica,
    api.ReadExclusions: target.read_exclusions,
    api.BeginPoint: target.begin_point,
    api.AttachDisks: target.attach_disks,
    api.SealPoint: target.seal_point,
    api.DraftQuery: target.query_draft,
    api.PublishPoint: target.publish_point,
    api.ReleaseDraft: target.release_draft,
    api.RetirePoints: target.retire_points,
    api.ForgetPoints: target.forget_points,
    api.BindHead: target.bind_head,
    api.ProbeConversion: conversion.probe_conversion,
    api.ConvertHead: conversion.start_conversion,
    api.SetState: target.set_state,
    api.SetIdentity: target.set_identity,
    api.RemoveReplica: target.remove_replica,
    api.RebuildReplica: start_rebuild_replica,
    api.MarkDatastore: target.mark_datastore,
    api.ListTagged: leftovers.list_tagged,
    api.HeldQuery: leftovers.query_held,
    api.ListCopies: leftovers.list_copies,
    api.SurveyDatastore: leftovers.survey_datastore,
    api.SweepReplica: leftovers.sweep_replica,
    api.VerifyPoint: verify.start_verify,
    api.RebuildDigests: verify.start_rebuild,
    api.SurveyDisks: survey.start_survey,
    api.EstimateTransfer: estimate.start_estimate,
    api.CopyDisk: transfer.start_copy,
    api.ReceiveDisk: transfer.start_receive,
    api.SendDisk: transfer.start_send,
    api.RedirectSend: transfer.redirect_send,
    api.SetRates: lambda mover, request: _set_rates(mover.throttles, request),
    api.WorkQuery: transfer.query_work,
    api.CancelWork: transfer.cancel_work,
}

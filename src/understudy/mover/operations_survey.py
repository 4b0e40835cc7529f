"""Operations that look into the volumes of disks."""

from __future__ import annotations

from understudy.context import Context
from understudy.model.exclusion import DiskSurvey
from understudy.mover import api
from understudy.mover.meter import Meter
from understudy.mover.state import Mover
from understudy.mover.survey_process import survey_disks


def start_survey(mover: Mover, request: api.SurveyDisks) -> api.WorkStarted:
    """Find what can be left out of disks, in a process without rights."""

    def survey(ctx: Context, _meter: Meter) -> tuple[DiskSurvey, ...]:
        return survey_disks(ctx, request, mover.credentials)

    return api.WorkStarted(mover.works.start("survey", survey))

"""Operations that look into the volumes of disks."""

from __future__ import annotations

from understudy.context import Context
from understudy.model.exclusion import DiskSurvey, Exclusion
from understudy.mover import api
from understudy.mover.meter import Meter
from understudy.mover.state import Mover


def start_survey(mover: Mover, request: api.SurveyDisks) -> api.WorkStarted:
    """Find what can be left out of disks: nothing, as long as no reader of volumes is there."""

    def survey(_ctx: Context, _meter: Meter) -> tuple[DiskSurvey, ...]:
        return tuple(DiskSurvey(Exclusion(disk.name)) for disk in request.disks)

    return api.WorkStarted(mover.works.start("survey", survey))

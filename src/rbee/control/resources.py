"""/v1/resources and /v1/admission: what the machine has left, and whether a worker would fit."""

import anyio
from fastapi import APIRouter

from rbee.control.admission_schemas import AdmissionRequest, ResourcesView, VerdictView
from rbee.control.context import Admin, Here
from rbee.control.resource_views import resources_view
from rbee.hive.orders import specify

router = APIRouter(prefix="/v1", tags=["resources"], dependencies=[Admin])


@router.post("/admission")
async def admission(body: AdmissionRequest, here: Here) -> VerdictView:
    """Whether this would fit now, and what would make it fit. Nothing is started, and nothing is promised."""
    verdict = await here.pool.consider(specify(body.order(), here.defaults), body.download_bytes)
    return VerdictView(**verdict.details())


@router.get("/resources")
async def resources(here: Here) -> ResourcesView:
    """Memory, devices and disks, and what each worker has a claim to."""
    admissions = here.pool.admissions
    survey, builds = await admissions.survey(), await admissions.builds()
    return resources_view(survey, here.registry, here.routes, here.limits, builds, anyio.current_time())

"""/v1/circuits: what has failed too often, and closing it by hand."""

from fastapi import APIRouter

from rbee.control.context import Admin, Here
from rbee.control.schemas import CircuitList, CircuitView
from rbee.control.views import circuit_view, closed

router = APIRouter(prefix="/v1/circuits", tags=["circuits"], dependencies=[Admin])


@router.get("")
async def circuits(here: Here) -> CircuitList:
    """Every kind of worker that has failed lately, closed ones included."""
    return CircuitList(circuits=[circuit_view(report) for report in here.pool.circuits])


@router.get("/{key}")
async def circuit(key: str, here: Here) -> CircuitView:
    """One of them. 404 where nothing of that kind has failed."""
    return circuit_view(here.pool.circuits.report(key))


@router.post("/{key}/reset", status_code=202)
async def reset(key: str, here: Here) -> CircuitView:
    """Close it and forget its failures; what waited for its next try is started now."""
    report = here.pool.circuits.report(key)
    here.pool.reset_circuit(key)
    return circuit_view(closed(report))

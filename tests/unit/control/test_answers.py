"""What the routes answer, asked without HTTP, with a pool on a jumping clock behind them."""

from dataclasses import replace
from types import SimpleNamespace

import anyio
import pytest

from rbee.control import circuits, system, workers
from rbee.core import auth
from rbee.core.errors import IllegalTransition
from rbee.core.worker import WorkerState
from rbee.testing import FakeHive
from tests.unit.hive.pools import FAILING, announcement, crash, ready_worker, running, settled

pytestmark = pytest.mark.anyio
ADMIN = auth.Principal(auth.Role.ADMIN)


def here(hive):
    return SimpleNamespace(pool=hive.pool, registry=hive.registry, routes=hive.routes)


async def register_by_hand(hive, **changes):
    said = announcement("by-hand", pid=77, **changes)
    return await hive.reception.announce(ADMIN, said)


async def open_circuit(hive):
    """Crash workers of one kind until it is open; its key."""
    await hive.pool.spawn(FAILING)
    await settled()
    while not any(report.probe_at for report in hive.pool.circuits):
        await crash(hive)
        await anyio.sleep(20)
    return next(iter(hive.pool.circuits)).key


async def test_who_resets_a_circuit_is_shown_it_closed():
    async with running(FakeHive()) as hive:
        key = await open_circuit(hive)
        view = await circuits.reset(key, here(hive))
        assert (view.key, view.model_ref, view.state, view.failures) == (key, "synthetic:x", "closed", 0)
        assert (view.worker_id, view.reason, view.exit_reason, view.probe_at, view.trying) == (None,) * 5
        assert view.last_log_lines == []


async def test_who_restarts_a_worker_started_by_hand_is_told_where_that_is_done():
    async with running(FakeHive()) as hive:
        await register_by_hand(hive)
        with pytest.raises(IllegalTransition) as refused:
            await workers.restart("by-hand", here(hive))
        assert "'by-hand' was started by hand" in refused.value.message
        assert "restart it where it was started" in refused.value.message
        assert "RestartRequested" not in refused.value.message
        assert refused.value.details == {"state": "ready"}


async def test_a_model_whose_worker_is_on_its_way_to_a_restart_is_still_listed():
    """A request for it waits; it would be told that the model is not there by who reads the list first."""
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, replace(FAILING, alias="chat"), alias="chat")
        hive.routes.acquire(record.worker_id)
        await workers.restart(record.worker_id, here(hive))
        assert record.worker.state is WorkerState.DRAINING
        assert [model.id for model in (await system.models(ADMIN, here(hive))).data] == ["chat", "synthetic:x"]
        await workers.delete(record.worker_id, here(hive))
        assert (await system.models(ADMIN, here(hive))).data == []

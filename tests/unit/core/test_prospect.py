"""What a request may hope for from a worker whose process is ending."""

import pytest

from rbee.core.routing import Standing
from rbee.core.worker import Worker, WorkerSpec, WorkerState

OWN, EXTERNAL = WorkerSpec(worker_id="w-1", model_ref="m"), WorkerSpec(worker_id="w-1", model_ref="m", external=True)
ENDING = (WorkerState.DRAINING, WorkerState.STOPPING)


@pytest.mark.parametrize("state", ENDING)
def test_worker_that_may_be_started_again_is_waited_for(state):
    assert Worker(OWN, state=state).prospect is Standing.COMING
    assert Worker(OWN, state=state, again=True).prospect is Standing.COMING


@pytest.mark.parametrize("state", ENDING)
def test_worker_that_is_forgotten_or_not_ours_to_start_is_not(state):
    assert Worker(OWN, state=state, forget=True).prospect is Standing.OUT
    assert Worker(EXTERNAL, state=state).prospect is Standing.OUT


@pytest.mark.parametrize("state", set(WorkerState) - set(ENDING))
def test_in_every_other_state_it_is_the_standing(state):
    worker = Worker(OWN, state=state)
    assert worker.prospect is worker.standing

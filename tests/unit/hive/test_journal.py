"""Who listens to the journal hears every entry once, in order, across restarts of the hive too."""

from contextlib import aclosing
from datetime import UTC, datetime

import anyio
import pytest

from rbee.core.worker import WorkerState
from rbee.hive.journal import Journal, Transition

pytestmark = pytest.mark.anyio


def entry(number):
    states = WorkerState.STARTING, WorkerState.LOADING
    return Transition(number, datetime.now(UTC), "w-1", "synthetic:x", 1, "AnnouncedLoading", *states, "", 0.0)


def filled(count, capacity=100):
    journal = Journal(capacity)
    for number in range(1, count + 1):
        journal.append(entry(number))
    return journal


async def followed(journal, number, count):
    seen = []
    async with aclosing(journal.follow(number)) as entries:
        async for one in entries:
            seen.append(one.number)
            if len(seen) == count:
                break
    return seen


async def test_a_follower_gets_what_is_kept_and_then_what_comes():
    journal = filled(3)
    async with anyio.create_task_group() as tasks:
        seen = []

        async def follow():
            seen.extend(await followed(journal, 1, 4))

        tasks.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        journal.append(entry(4))
        journal.append(entry(5))
    assert seen == [2, 3, 4, 5]


async def test_a_number_of_an_earlier_hive_means_from_the_start():
    assert await followed(filled(3), 500, 3) == [1, 2, 3]


async def test_only_the_newest_are_kept():
    assert [one.number for one in filled(10, capacity=4).since(0)] == [7, 8, 9, 10]


async def test_a_closed_journal_ends_its_followers():
    journal = filled(2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(followed, journal, 0, 99)
        await anyio.wait_all_tasks_blocked()
        journal.close()

"""Any story of one busy worker: who moves is never called hung, who does not always is, and in time."""

import logging

import anyio
import structlog
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rbee.hive.monitor import LOOK_INTERVAL
from tests.unit.hive.monitored import OPTIONS, watching

STEPS = st.tuples(
    st.sampled_from(["nothing", "byte", "counter", "processor", "little_processor", "rest", "new_request"]),
    st.sampled_from([0.3, 4.9, 31.0, 60.0, 118.7, 121.0, 127.0, 300.0]),
)
SLACK = OPTIONS.memory_interval + LOOK_INTERVAL + 0.1


class Story:
    """``shown``: when the worker last showed that it moves, or began to have work."""

    def __init__(self, scene):
        self.scene = scene
        self.record = scene.add()
        self.counted = 0
        scene.begin(self.record)
        self.shown = scene.now

    async def take(self, what):
        await getattr(self, what)()

    async def nothing(self):
        pass

    async def byte(self):
        self.scene.route(self.record).activity.relayed_bytes += 1
        self.shown = self.scene.now

    async def counter(self):
        self.counted += 1
        self.scene.beat(self.record, generated_tokens_total=self.counted, slots_busy=1)
        self.shown = self.scene.now

    async def processor(self):
        self.scene.use(self.record, cpu=1.01)
        self.shown = self.scene.now

    async def little_processor(self):
        """What an engine uses that only answers questions: it proves nothing."""
        self.scene.use(self.record, cpu=0.001)

    async def rest(self):
        while self.scene.route(self.record).in_flight:
            self.scene.finish(self.record)
        self.scene.beat(self.record, generated_tokens_total=self.counted, slots_busy=0)
        await anyio.sleep(2 * LOOK_INTERVAL)
        self.scene.begin(self.record)
        self.shown = self.scene.now

    async def new_request(self):
        """A client that tries again shows that the client moves, not the worker."""
        self.scene.begin(self.record)


async def play(steps):
    async with watching() as scene:
        story = Story(scene)
        for what, seconds in steps:
            await story.take(what)
            await anyio.sleep(seconds)
            if scene.ended:
                assert scene.ended[0][0] >= story.shown + OPTIONS.hang_timeout
                return
            assert scene.now <= story.shown + OPTIONS.hang_timeout + SLACK


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=12))
@example([("processor", 118.7)] * 12)
@example([("byte", 4.9)] + [("new_request", 31.0)] * 6)
def test_who_moves_is_never_called_hung_and_who_does_not_always_is(steps):
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        trio.run(play, steps, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        structlog.reset_defaults()

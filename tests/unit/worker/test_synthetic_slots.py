"""The slots of the synthetic engine, when a client goes away at a bad moment."""

from rbee.worker.engines.synthetic_generation import Generation, Pace, Slots
from rbee.worker.engines.synthetic_http import Loop


class LeavingConnection:
    """Its client goes away while the last event of the stream is written."""

    backlog = 0
    on_gone = None

    def start_events(self):
        return

    def send_event(self, data):
        if data == "[DONE]":
            self.on_gone()

    def end_events(self):
        return


def test_a_client_that_goes_away_during_the_end_of_its_stream_frees_its_slot_once():
    loop = Loop()
    slots = Slots(loop, 1, Pace(0.0, 1e9))
    connection = LeavingConnection()
    slots.submit(Generation(connection, {"stream": True, "max_tokens": 1}, True, "synthetic:x"))
    loop._run_timers()
    assert [slot["is_processing"] for slot in slots.page(1)] == [False]

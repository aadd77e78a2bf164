"""What the keeper reads of processes that may end at any moment."""

import subprocess
import threading

from rbee.worker.processes import resident_bytes

LOOKS = 30_000


def test_a_process_that_ends_while_it_is_measured_is_one_without_memory():
    newest, done = [1], threading.Event()

    def live_briefly():
        while not done.is_set():
            child = subprocess.Popen(["/bin/true"])
            newest[0] = child.pid
            child.wait()

    brief = threading.Thread(target=live_briefly)
    brief.start()
    try:
        for _ in range(LOOKS):
            found = resident_bytes(newest[0])
            assert found is None or found >= 0
    finally:
        done.set()
        brief.join()

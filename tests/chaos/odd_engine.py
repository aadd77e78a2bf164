"""An engine with bad habits: the synthetic one, and what ``<model>.json`` beside its model file says it does wrong.

Run as ``odd_engine.py PORT MODEL NAME...``. The file is read at each start, so a test mends a model by writing it anew.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from rbee.worker.engines.synthetic_http import Loop, listen
from rbee.worker.engines.synthetic_server import SyntheticServer

SLOTS = 4


def main() -> None:
    port, model, names = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    habits = json.loads(model.with_suffix(".json").read_text())
    if "exit_at_once" in habits:
        sys.exit(f"error: {habits['exit_at_once']}")
    loop = Loop()
    arguments = habits.get("arguments", {})
    config = {"names": names, "slots": SLOTS, "ctx_size": 4096, "args": arguments}
    server = SyntheticServer(loop, config, os.environ.get("RBEE_ENGINE_KEY", ""))
    try:
        listen(loop, "127.0.0.1", port, server.handle)
    except OSError as error:
        sys.exit(f"error: couldn't bind port {port}: {error.strerror}")
    if "holder" in habits:
        hold_the_port(own_session=habits["holder"] == "session")
    if "works_while_loading" in habits:
        threading.Thread(target=work, args=(habits["works_while_loading"],), daemon=True).start()
    if not habits.get("never_ready"):
        server.start_loading()
    loop.run()


def hold_the_port(own_session: bool) -> None:
    """A child that keeps the listening socket open and wants no SIGTERM, as a helper of vLLM's shape would."""
    if os.fork():
        return
    if own_session:
        os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


def work(seconds: float) -> None:
    """Use about a fifth of a core, as a load from a slow disk would."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.process_time()
        while time.process_time() - started < 0.01:
            pass
        time.sleep(0.04)


if __name__ == "__main__":
    main()

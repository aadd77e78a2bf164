"""What the hive relies on, shown by the real node and probe and by the fakes that its tests use instead."""

import contextlib
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import anyio
import pytest

from rbee.core.exits import UNKNOWN
from rbee.core.launch import ProcessIdentity, Reply, StoredWorker
from rbee.nodes import processes
from rbee.nodes.probes import HttpProbe
from rbee.testing import FakeNode, FakeProbe
from tests.integration.nodes.exhausted import no_descriptors
from tests.integration.nodes.family import family

pytestmark = pytest.mark.anyio
NOBODY = ProcessIdentity(2**22 + 1, 1, "boot")


@pytest.fixture(params=["real", "fake"])
def any_node(request, node):
    return node if request.param == "real" else FakeNode()


@pytest.fixture
def living_row(any_node, row, worker_id):
    """The row of a worker that an earlier hive started, and that still runs."""
    with family(f"{worker_id}:7") as worker:
        identity = processes.identify(worker["keeper"].pid)
        if isinstance(any_node, FakeNode):
            any_node.add_living(identity)
        yield StoredWorker(row.spec, 7, identity)


class TestNode:
    async def test_a_living_worker_is_adopted_and_ends_when_it_is_killed(self, any_node, living_row):
        process = await any_node.adopt(living_row)
        assert process.identity == living_row.identity
        process.kill()
        with anyio.fail_after(60):
            await process.wait()

    async def test_one_that_is_gone_is_not(self, any_node, row):
        assert await any_node.adopt(row) is None
        assert await any_node.adopt(StoredWorker(row.spec, 7, NOBODY)) is None

    async def test_of_one_that_left_nothing_nothing_is_known_or_left_to_kill(self, any_node, worker_id):
        assert await any_node.last_word(worker_id, 7) == UNKNOWN
        assert await any_node.sweep(worker_id, 7) == 0

    async def test_one_that_is_gone_is_not_measured(self, any_node):
        assert await any_node.measure([NOBODY.pid]) == {}

    def test_nobody_is_not_watched(self, any_node):
        assert any_node.watch(NOBODY.pid) is None

    async def test_not_to_be_able_to_look_is_an_error_of_the_system(self, any_node, living_row, worker_id):
        def blind():
            if isinstance(any_node, FakeNode):
                any_node.blind = 1
                return contextlib.nullcontext()
            return no_descriptors()

        with blind(), pytest.raises(OSError, match="Too many open files"):
            any_node.watch(living_row.identity.pid)
        with blind(), pytest.raises(OSError, match="Too many open files"):
            await any_node.adopt(living_row)
        with blind(), pytest.raises(OSError, match="Too many open files"):
            await any_node.find_keeper(worker_id, 7)

    async def test_what_nobody_knows_is_forgotten_once(self, any_node, tmp_path):
        if isinstance(any_node, FakeNode):
            any_node.strangers = {"w-known", "w-lost"}
        else:
            (tmp_path / "workers" / "w-known").mkdir(parents=True)
            (tmp_path / "workers" / "w-lost").mkdir()
        assert await any_node.forget_strangers(["w-known"]) == 1
        assert await any_node.forget_strangers(["w-known"]) == 0


class Engine(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.path == "/health" and self.headers["authorization"] == "Bearer its-key"
        self.send_response(200 if asked else 401)
        self.end_headers()
        self.wfile.write(b"well")

    def log_message(self, *_):
        pass


def url_of(server):
    return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(params=["real", "fake"])
def servers(request):
    """A probe; the urls of one who answers, one who never does, and nobody."""
    engine = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    Thread(target=engine.serve_forever, daemon=True).start()
    silent = socket.create_server(("127.0.0.1", 0))
    nobody = socket.create_server(("127.0.0.1", 0))
    urls = url_of(engine.socket), url_of(silent), url_of(nobody)
    nobody.close()
    if request.param == "real":
        yield HttpProbe(), *urls
    else:
        fake = FakeProbe()
        fake.answering[urls[0]] = Reply(200, b"well")
        fake.silent.add(urls[1])
        yield fake, *urls
    engine.shutdown()
    engine.server_close()
    silent.close()


class TestProbe:
    async def test_a_server_is_asked_with_its_key(self, servers):
        probe, engine, _, _ = servers
        assert await probe.get(engine, "/health", "its-key") == Reply(200, b"well")

    async def test_where_nobody_listens_it_is_an_error_of_the_system(self, servers):
        probe, _, _, nobody = servers
        with pytest.raises(OSError):  # noqa: PT011 - its words are the system's
            await probe.get(nobody, "/health", "its-key")

    async def test_the_caller_bounds_the_time(self, servers):
        probe, _, silent, _ = servers
        with anyio.move_on_after(0.05) as patience:
            await probe.get(silent, "/health", "its-key")
        assert patience.cancelled_caught

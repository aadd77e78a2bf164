"""What was learnt of models, in a real file: kept over a restart, and never in anybody's way."""

import sqlite3
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from rbee.core.claims import Peak
from rbee.core.model_header import ModelFacts, ModelHeader
from rbee.storage import models
from rbee.storage.models import ModelStore
from tests.small_disk import with_small_disk

pytestmark = pytest.mark.anyio
PEAK = Peak(7, (1, 2))
HEADER = ModelHeader("llama", 64, 256, 10, 4096, (4,), (2,), 16, 16, 1, (2,), 3, False, windowed=(True,))
FACTS = ModelFacts(99, HEADER)


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "models.db"


@pytest.fixture
def store(path):
    opened = ModelStore(path)
    yield opened
    opened.close()


async def fill(path):
    store = ModelStore(path)
    await store.save("k", PEAK)
    await store.keep_facts("/m.gguf", "1:2", FACTS)
    store.close()


def execute(path, statement, *values):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(statement, values)
    db.close()


async def test_what_was_kept_is_there_for_the_next_hive(path, store):
    await fill(path)
    assert await store.load() == {"k": PEAK}
    assert await store.facts("/m.gguf", "1:2") == FACTS


async def test_a_model_without_a_header_is_kept_as_one(store):
    await store.keep_facts("/m.gguf", "1:2", ModelFacts(5))
    assert await store.facts("/m.gguf", "1:2") == ModelFacts(5)


async def test_a_file_of_another_stamp_is_not_known(path, store):
    await fill(path)
    assert await store.facts("/m.gguf", "1:3") is None
    assert await store.facts("/other.gguf", "1:2") is None


async def test_a_header_that_another_version_read_is_not_known_and_its_peaks_are(path):
    await fill(path)
    later = ModelStore(path, "99.0")
    assert await later.facts("/m.gguf", "1:2") is None
    assert await later.load() == {"k": PEAK}
    later.close()


async def test_a_later_peak_takes_the_place_of_the_earlier(path, store):
    await fill(path)
    await store.save("k", Peak(8))
    assert await store.load() == {"k": Peak(8)}


async def test_a_path_that_is_no_utf_8_is_kept(store):
    await store.keep_facts("/\udcff.gguf", "1:2", FACTS)
    assert await store.facts("/\udcff.gguf", "1:2") == FACTS


DAMAGE = {
    "no database": lambda path: path.write_bytes(b"no database" * 1000),
    "zeroes in the middle": lambda path: path.write_bytes(path.read_bytes()[:4096] + bytes(8192)),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "a newer version": lambda path: execute(path, "PRAGMA user_version = 99"),
    "tables of something else": lambda path: execute(path, "ALTER TABLE peaks RENAME TO workers"),
    "a peak that is no JSON": lambda path: execute(path, "UPDATE peaks SET peak = '{'"),
    "a peak of another shape": lambda path: execute(path, 'UPDATE peaks SET peak = \'{"ram_bytes": "much"}\''),
    "text that is no UTF-8": lambda path: execute(path, "UPDATE peaks SET peak = CAST(x'ff' AS TEXT)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_file_is_made_anew_and_said_once(path, store, damage):
    await fill(path)
    DAMAGE[damage](path)
    with capture_logs() as logs:
        assert await store.load() == {}
        await store.save("k2", PEAK)
        assert await store.load() == {"k2": PEAK}
        await store.keep_facts("/m.gguf", "1:2", FACTS)
        assert await store.facts("/m.gguf", "1:2") == FACTS
    assert [line["event"] for line in logs] == ["model_store_made_anew"]


async def test_a_header_of_another_shape_is_forgotten(path, store):
    await fill(path)
    execute(path, "UPDATE headers SET facts = '[]'")
    assert await store.facts("/m.gguf", "1:2") is None


async def test_a_place_that_cannot_be_written_is_said_once_and_hurts_nobody(tmp_path):
    store = ModelStore(tmp_path / "missing" / "models.db")
    with capture_logs() as logs:
        for _ in range(3):
            await store.save("k", PEAK)
            assert await store.load() == {}
        (tmp_path / "missing").mkdir()
        await store.save("k", PEAK)
        assert await store.load() == {"k": PEAK}
    store.close()
    assert [line["event"] for line in logs] == ["model_store_unusable"]


async def test_somebody_elses_lock_is_waited_out_and_then_left(path, store, tmp_path):
    await fill(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    await store.save("k", Peak(8))
    other.execute("ROLLBACK")
    other.close()
    assert await store.load() == {"k": PEAK}
    await store.save("k", Peak(8))
    assert await store.load() == {"k": Peak(8)}


async def test_the_rows_that_were_written_longest_ago_go(store, path):
    await store.save("k0", PEAK)
    db = sqlite3.connect(path)
    rows = ((f"k{number}", '{"ram_bytes": 1}') for number in range(1, models.MAX_ROWS + 1))
    db.executemany("INSERT INTO peaks VALUES (?, ?)", rows)
    db.commit()
    db.close()
    await store.save("k0", PEAK)
    await store.save("new", PEAK)
    kept = await store.load()
    assert len(kept) == models.MAX_ROWS
    assert {"k0", "new", "k3"} <= kept.keys()
    assert not {"k1", "k2"} & kept.keys()


async def test_a_store_that_is_closed_knows_nothing(path, store):
    await fill(path)
    store.close()
    await store.save("k", Peak(8))
    assert await store.load() == {}


def test_a_full_disk_forgets_and_says_so(tmp_path):
    body = """
import sys
from pathlib import Path
import anyio
from rbee.core.claims import Peak
from rbee.storage.models import ModelStore
from tests.small_disk import fill

async def main():
    store = ModelStore(Path(sys.argv[1]) / "models.db")
    await store.save("k", Peak(1))
    ballast = fill(Path(sys.argv[1]))
    for number in range(300):
        await store.save("x" * 1000 + str(number), Peak(1))
    ballast.unlink()
    await store.save("after", Peak(2))
    assert "after" in await store.load()
    store.close()

anyio.run(main)
"""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [*with_small_disk(disk), sys.executable, "-c", body, str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model_store_unusable") == 1

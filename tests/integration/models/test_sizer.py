"""The sizer on real files, with a real store: read once, and again as soon as any of them is another."""

import os

import anyio
import anyio.lowlevel
import pytest

from rbee.core.errors import ModelNotFound, NotAModelFile
from rbee.core.model_header import ModelFacts
from rbee.models.sizer import MAX_REMEMBERED, HeaderSizer
from rbee.storage.models import ModelStore
from tests.gguf_files import Model

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Kept:
    """A store that counts what is asked of it."""

    def __init__(self):
        self.rows = {}
        self.asked = 0
        self.written = 0

    async def facts(self, path, stamp):
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        return self.rows.get((path, stamp))

    async def keep_facts(self, path, stamp, facts):
        self.written += 1
        self.rows[path, stamp] = facts


async def test_a_model_asked_for_many_times_at_once_is_read_once(tmp_path):
    path, kept = Model().write(tmp_path / "model.gguf"), Kept()
    sizer = HeaderSizer(kept)
    found = []

    async def ask():
        found.append(await sizer.facts(str(path)))

    async with anyio.create_task_group() as tasks:
        for _ in range(32):
            tasks.start_soon(ask)
    assert (kept.asked, kept.written) == (1, 1)
    assert len(found) == 32
    assert all(one is found[0] for one in found)


async def test_a_model_that_was_replaced_is_read_again(tmp_path):
    path, sizer = Model().write(tmp_path / "model.gguf"), HeaderSizer(Kept())
    before = await sizer.facts(str(path))
    Model(layers=3).write(path)
    after = await sizer.facts(str(path))
    assert (before.header.layers, after.header.layers) == (2, 3)


async def test_a_part_of_the_same_size_that_is_another_file_is_noticed(tmp_path):
    parts, kept = Model().split(tmp_path, 2), Kept()
    sizer = HeaderSizer(kept)
    await sizer.facts(str(parts[0]))
    os.utime(parts[1], ns=(1, 1))
    await sizer.facts(str(parts[0]))
    assert kept.written == 2


async def test_a_part_that_went_away_is_missed_although_all_was_remembered(tmp_path):
    parts, sizer = Model().split(tmp_path, 2), HeaderSizer(Kept())
    await sizer.facts(str(parts[0]))
    parts[1].unlink()
    with pytest.raises(ModelNotFound, match="part 2 of 2"):
        await sizer.facts(str(parts[0]))


async def test_what_was_refused_can_be_put_right(tmp_path):
    path, sizer = tmp_path / "model.gguf", HeaderSizer(Kept())
    with pytest.raises(ModelNotFound):
        await sizer.facts(str(path))
    path.write_bytes(b"GGUF")
    with pytest.raises(NotAModelFile):
        await sizer.facts(str(path))
    Model().write(path)
    assert (await sizer.facts(str(path))).header is not None


async def test_the_next_hive_reads_no_file_again(tmp_path):
    """What the store tells differs from the file, so it shows which of them was read."""
    path = Model().write(tmp_path / "model.gguf")
    first = ModelStore(tmp_path / "models.db")
    facts = await HeaderSizer(first).facts(str(path))
    first.close()
    second = ModelStore(tmp_path / "models.db")
    found = path.stat()
    stamp = f"{found.st_size}:{found.st_mtime_ns}"
    assert await second.facts(str(path), stamp) == facts
    await second.keep_facts(str(path), stamp, ModelFacts(77))
    assert (await HeaderSizer(second).facts(str(path))).file_bytes == 77
    second.close()


async def test_a_disk_that_does_not_answer_is_given_up(tmp_path):
    class Stuck(Kept):
        async def facts(self, path, stamp):
            await anyio.sleep_forever()

    path = Model().write(tmp_path / "model.gguf")
    with pytest.raises(ModelNotFound, match=r"did not answer within 0\.05 s"):
        await HeaderSizer(Stuck(), 0.05).facts(str(path))


async def test_no_more_is_remembered_than_it_may(tmp_path):
    kept = Kept()
    sizer = HeaderSizer(kept)
    for number in range(MAX_REMEMBERED + 1):
        path = tmp_path / f"{number}.gguf"
        path.touch()
        found = path.stat()
        kept.rows[str(path), f"{found.st_size}:{found.st_mtime_ns}"] = ModelFacts(number)
        await sizer.facts(str(path))
    assert kept.asked == MAX_REMEMBERED + 1
    await sizer.facts(str(tmp_path / "1.gguf"))
    assert kept.asked == MAX_REMEMBERED + 1
    await sizer.facts(str(tmp_path / "0.gguf"))
    assert kept.asked == MAX_REMEMBERED + 2

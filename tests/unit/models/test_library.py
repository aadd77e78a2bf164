"""Models in files: where a reference may point, and what an engine is told to open."""

import pytest

from rbee.core import model_ref
from rbee.core.errors import ModelNotFound, NotAModelFile
from rbee.models.facts import read_facts
from rbee.models.library import ModelLibrary
from tests.gguf_files import Model

pytestmark = pytest.mark.anyio
FIRST = "model-00001-of-00003.gguf"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


async def located(root, path):
    return await ModelLibrary([root]).locate(model_ref.parse(f"file:{path}"))


def as_a_cache_keeps_it(root, blobs):
    """The parts of a model as links to files that are named by their content."""
    blobs.mkdir()
    for number, part in enumerate(Model().split(root, 3)):
        blob = part.rename(blobs / f"c0ffee{number}")
        part.symlink_to(blob)


async def test_a_link_is_followed(root):
    path = Model().write(root / "blob")
    (root / "model.gguf").symlink_to(path)
    assert await located(root, root / "model.gguf") == str(path)


async def test_the_parts_of_a_model_may_be_links(root):
    as_a_cache_keeps_it(root, root / "blobs")
    path = await located(root, root / FIRST)
    assert path == str(root / FIRST)
    assert read_facts(path).header is not None


async def test_no_part_may_be_a_link_to_outside(root, tmp_path):
    as_a_cache_keeps_it(root, tmp_path / "outside")
    with pytest.raises(ModelNotFound, match="c0ffee0' is outside the directories"):
        await located(root, root / FIRST)
    (root / FIRST).unlink()
    Model().split(tmp_path, 3)[0].rename(root / FIRST)
    with pytest.raises(ModelNotFound, match="c0ffee1' is outside the directories"):
        await located(root, root / FIRST)


async def test_the_way_to_the_parts_is_followed_too(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    Model().split(root, 3)
    assert await located(root, tmp_path / "link" / FIRST) == str(root / FIRST)


async def test_a_part_that_is_missing_is_left_to_the_reader(root):
    parts = Model().split(root, 3)
    parts[2].unlink()
    assert await located(root, parts[0]) == str(parts[0])


async def test_a_later_part_is_refused(root):
    parts = Model().split(root, 3)
    with pytest.raises(NotAModelFile, match="name its first part"):
        await located(root, parts[1])


async def test_links_that_go_round_are_told(root):
    (root / "a.gguf").symlink_to(root / "a.gguf")
    with pytest.raises(ModelNotFound, match=r"cannot be (followed|read)"):
        await located(root, root / "a.gguf")

"""A disk that hangs keeps no more than a few threads of ours."""

import threading

import anyio.to_thread
import pytest

from rbee.core.errors import ModelNotFound
from rbee.core.model_ref import parse
from rbee.models.library import MAX_HANGING, ModelLibrary
from tests.hives import wait_for

REF = parse("file:/models/model.gguf")


@pytest.fixture
def anyio_backend():
    return "asyncio"


class HangingLibrary(ModelLibrary):
    """Its disk answers nobody before ``answers`` is set."""

    def __init__(self):
        super().__init__([], look_timeout=0.05)
        self.looks = 0
        self.answers = threading.Event()

    def _locate(self, ref):
        self.looks += 1
        self.answers.wait()
        return "/models/model.gguf"


@pytest.mark.anyio
async def test_after_so_many_looks_that_hang_no_new_one_is_begun_until_the_disk_answers():
    library = HangingLibrary()
    try:
        for _ in range(MAX_HANGING + 3):
            with pytest.raises(ModelNotFound, match="did not answer"):
                await library.locate(REF)
        # The one that was given up last may not count yet.
        assert MAX_HANGING <= library.looks <= MAX_HANGING + 1
    finally:
        library.answers.set()
    await anyio.to_thread.run_sync(wait_for, lambda: not library._hanging(), "its threads have ended")
    assert await library.locate(REF) == "/models/model.gguf"

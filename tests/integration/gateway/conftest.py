import tempfile
from pathlib import Path

import pytest

from rbee.core.auth import AuthPolicy
from tests.integration.gateway.stubs import close_house, open_house


@pytest.fixture
def anyio_backend():
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def socket_path():
    # Not tmp_path: the name of a test would make the path longer than a socket's may be.
    with tempfile.TemporaryDirectory(prefix="rbee-") as directory:
        yield str(Path(directory) / "control.sock")


@pytest.fixture
async def make_house(anyio_backend, socket_path):
    """Opens a house with the options that the test wants; after the test no slot and no byte may be held."""
    houses = []

    async def make(auth: AuthPolicy | None = None, **options):
        houses.append(await open_house(socket_path, auth or AuthPolicy({}, b"secret"), **options))
        return houses[-1]

    yield make
    for house in houses:
        await close_house(house)
        assert house.slots_used() == 0
        assert house.gateway.buffer.used == 0
        assert house.gateway.waiting().keys() == house.gateway.in_flight().keys()
        assert not any(house.gateway.waiting().values())


@pytest.fixture
async def house(make_house):
    return await make_house()

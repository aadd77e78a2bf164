"""One hive, with keys, for all that the official clients ask of the real model."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rbee.core.auth import engine_key
from tests.hives import Hive, running_hive, wait_for

ADMIN_KEY, CLIENT_KEY, METRICS_KEY = "an-admins-key-of-its-own", "a-clients-key-of-its-own", "a-scrapers-key-of-its-own"
ONE_AT_A_TIME_KEY, ONCE_A_MINUTE_KEY = "the-key-for-one-at-a-time", "the-key-for-once-a-minute"
TOOLS_TEMPLATE = Path(__file__).with_name("tools.jinja").read_text()
"""The example model's own template knows no tools; this one shows them as Qwen's models are shown them."""


@dataclass
class Served:
    """A hive that wants keys, asked as its admin."""

    hive: Hive

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.hive.port}"

    def spawn(self, model_ref: str, **fields: Any) -> str:
        answer = self.hive.post("/v1/workers/spawn", {"model_ref": model_ref, **fields}, token=ADMIN_KEY)
        assert answer.status == 200, answer.body
        return str(answer.json["worker_id"])

    def worker(self, worker_id: str) -> dict[str, Any]:
        return dict(self.hive.get(f"/v1/workers/{worker_id}", token=ADMIN_KEY).json)

    def until(self, worker_id: str, *states: str) -> dict[str, Any]:
        return wait_for(
            lambda: seen if (seen := self.worker(worker_id))["state"] in states else None,
            f"{worker_id} is {' or '.join(states)}",
        )

    def ready(self, model_ref: str, **fields: Any) -> dict[str, Any]:
        return self.until(self.spawn(model_ref, **fields), "idle")

    def key_of_engine(self, worker: dict[str, Any]) -> str:
        secret = (self.hive.state_dir / "secret").read_bytes()
        return engine_key(secret, worker["worker_id"], worker["incarnation"])


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    config = folder / "rbee-hive.toml"
    keys = {
        "app": (CLIENT_KEY, 'role = "client"'),
        "scraper": (METRICS_KEY, 'role = "metrics"'),
        "one": (ONE_AT_A_TIME_KEY, 'role = "client"\nmax_in_flight = 1'),
        "rare": (ONCE_A_MINUTE_KEY, 'role = "client"\nrequests_per_minute = 1'),
    }
    config.write_text(
        f'[auth]\napi_token = "{ADMIN_KEY}"\n'
        + "".join(
            f'[keys.{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n{rest}\n'
            for name, (key, rest) in keys.items()
        )
        + '[gateway]\nqueue_limit = 1\nmax_body = "1MiB"\n'
    )
    config.chmod(0o600)
    with running_hive(folder / "state", config=config) as hive:
        yield Served(hive)


@pytest.fixture(scope="session")
def smol(served):
    """The real model, four slots, with a template that knows tools."""
    return served.ready("example", alias="smol", engine_args=["--chat-template", TOOLS_TEMPLATE])

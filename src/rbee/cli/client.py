"""The hive as the command line sees it: HTTP by the standard library, because a client library takes longer to import
than the whole command may take."""

import http.client
import json
import ssl
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlsplit

import click

CALL_TIMEOUT: Final = 30.0
"""Seconds for a call that answers at once. A stream has no limit: a model may load for minutes; Ctrl+C ends it."""


class HiveUnreachable(click.ClickException):
    """Nobody answers there, or somebody who is not a hive."""


class Refused(click.ClickException):
    """The hive said no. ``status`` is the HTTP status, ``code`` the error's own name, ``details`` what else it said."""

    def __init__(self, message: str, status: int, code: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.details = details or {}


@dataclass(frozen=True, slots=True)
class Hive:
    """One hive by its base URL."""

    url: str
    token: str | None = field(default=None, repr=False)

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of the answer. Raises Refused for any status but 2xx, HiveUnreachable where there is no answer."""
        with self._answer(method, path, body, CALL_TIMEOUT) as response:
            raw = self._read(response)
        try:
            return json.loads(raw)
        except ValueError as error:
            raise self._stranger() from error

    def text(self, path: str) -> str:
        with self._answer("GET", path, None, CALL_TIMEOUT) as response:
            return self._read(response).decode("utf-8", "replace")

    def events(self, method: str, path: str, body: Any = None) -> Generator[str, None, None]:
        """The data of each server-sent event, as it comes. Closing the generator closes the connection."""
        with self._answer(method, path, body, None) as response:
            data: list[str] = []
            for raw in self._lines(response):
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                name, _, value = line.partition(":")
                if name == "data":
                    data.append(value.removeprefix(" "))
                elif not line and data:
                    yield "\n".join(data)
                    data = []

    @contextmanager
    def _answer(self, method: str, path: str, body: Any, timeout: float | None) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(self.url)
        headers = {"Accept": "application/json, text/event-stream, text/plain", "Connection": "close"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        content = None if body is None else json.dumps(body)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        with closing(kind(parts.hostname or "", parts.port, timeout=timeout)) as connection:
            try:
                connection.request(method, parts.path.rstrip("/") + path, content, headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from error
            with response:
                if not 200 <= response.status < 300:
                    raise self._refused(response)
                yield response

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            try:
                line = response.readline()
            except (OSError, http.client.HTTPException) as error:
                raise HiveUnreachable(f"The hive at {self.url} went away in the middle of its answer.") from error
            if not line:
                return
            yield line

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error

    def _refused(self, response: http.client.HTTPResponse) -> click.ClickException:
        raw = self._read(response)
        try:
            error = json.loads(raw)["error"]
            message, code, details = error["message"], str(error.get("code", "")), error.get("details")
        except (ValueError, KeyError, TypeError):
            return (
                self._stranger()
                if response.status == 404
                else Refused(f"{response.status} {response.reason}", response.status)
            )
        if code == "route_not_found":
            message = f"The hive at {self.url} is older than this command line, and does not know this; update it."
        if response.status == 401:
            message += " The command line takes its token from RBEE_API_TOKEN."
        return Refused(message, response.status, code, details if isinstance(details, dict) else None)

    def _unreachable(self, error: Exception) -> HiveUnreachable:
        if isinstance(error, ConnectionRefusedError):
            return HiveUnreachable(
                f"No hive runs at {self.url}. Start one with: rbee-hive daemon (or name another with --url or RBEE_URL)"
            )
        if isinstance(error, TimeoutError):
            return HiveUnreachable(f"The hive at {self.url} does not answer within {CALL_TIMEOUT:g} s.")
        if isinstance(error, ConnectionResetError):  # which RemoteDisconnected is, too
            return HiveUnreachable(f"The hive at {self.url} closed the connection without an answer.")
        if isinstance(error, ssl.SSLCertVerificationError):
            return HiveUnreachable(
                f"The certificate of {self.url} is not trusted: {error.verify_message.rstrip('.')}. Name the file that "
                "vouches for it in SSL_CERT_FILE."
            )
        if isinstance(error, ssl.SSLError | http.client.HTTPException):
            return self._stranger()
        return HiveUnreachable(
            f"The hive at {self.url} cannot be reached: {getattr(error, 'strerror', None) or error}."
        )

    def _stranger(self) -> HiveUnreachable:
        return HiveUnreachable(f"What answers at {self.url} is not a rbee hive; name another with --url or RBEE_URL.")


def worker_path(worker_id: str) -> str:
    return f"/v1/workers/{quote(worker_id, safe='')}"

"""Clients that never rest: what was asked, and how each request ended."""

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

CLIENT_TIMEOUT = 60.0
"""Seconds of silence after which a client calls a request stuck."""
CLIENT_REST = 0.25
"""Seconds before a client that got no answer asks the next thing."""


@dataclass(frozen=True)
class Wish:
    model: str
    stream: bool = False
    tokens: int = 8
    leaves_after: int | None = None
    """Events of a stream after which the client closes the connection."""


@dataclass(frozen=True)
class Outcome:
    """How one request ended. Times on this process's monotonic clock, seconds.

    ``kind``: answered, refused (a status with our error body), broken_off (an error event in a stream), left (by the
    client itself), cut (the connection ended), stuck, or wrong (an answer that does not fit what was asked).
    """

    wish: Wish
    started: float
    ended: float
    kind: str
    status: int = 0
    code: str = ""
    worker_id: str = ""
    detail: str = ""

    def __str__(self) -> str:
        how = "stream" if self.wish.stream else "request"
        return (
            f"{how} of {self.wish.tokens} tokens to {self.wish.model}: {self.kind} status={self.status} "
            f"code={self.code} worker={self.worker_id} after {self.ended - self.started:.2f} s {self.detail}"
        )


class Exchange:
    """One request on a connection of its own."""

    def __init__(self, host: str, port: int, wish: Wish) -> None:
        self._wish = wish
        self._connection = http.client.HTTPConnection(host, port, timeout=CLIENT_TIMEOUT)
        self._outcome = Outcome(wish, time.monotonic(), 0.0, "stuck")

    def run(self, on_event: Callable[[int], None] = lambda _: None) -> Outcome:
        """*on_event* is called with the number of tokens read so far, after each."""
        try:
            self._ask(on_event)
        except TimeoutError:
            self._ends("stuck")
        except (OSError, http.client.HTTPException) as error:
            self._ends("cut", detail=repr(error))
        finally:
            self._connection.close()
        return replace(self._outcome, ended=time.monotonic())

    def _ends(self, kind: str, **fields: object) -> None:
        self._outcome = replace(self._outcome, kind=kind, **fields)  # type: ignore[arg-type]

    def _ask(self, on_event: Callable[[int], None]) -> None:
        wish = self._wish
        body = {
            "model": wish.model,
            "stream": wish.stream,
            "max_tokens": wish.tokens,
            "messages": [{"role": "user", "content": "hum"}],
        }
        headers = {"content-type": "application/json"}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = self._connection.getresponse()
        worker_id = answer.getheader("x-rbee-worker") or ""
        self._outcome = replace(self._outcome, status=answer.status, worker_id=worker_id)
        if answer.status != 200:
            self._read_refusal(answer.read())
        elif wish.stream:
            self._read_events(answer, on_event)
        else:
            self._read_whole(answer.read())

    def _read_refusal(self, body: bytes) -> None:
        try:
            value = json.loads(body)
            code, message = value["error"]["code"], value["error"]["message"]
            self._ends("refused", code=str(code), detail=str(message) if value["request_id"] else "")
        except (ValueError, KeyError, TypeError):
            self._ends("wrong", detail=f"not our error body: {body[:200]!r}")

    def _read_whole(self, body: bytes) -> None:
        value = json.loads(body)
        made = value["usage"]["completion_tokens"]
        self._judge(value["system_fingerprint"], made)

    def _read_events(self, answer: http.client.HTTPResponse, on_event: Callable[[int], None]) -> None:
        made, by = 0, self._wish.model
        while line := answer.readline():
            if line.startswith(b": x-rbee-worker="):
                self._outcome = replace(self._outcome, worker_id=line.split(b"=")[1].split()[0].decode())
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                self._judge(by, made)
                return
            value = json.loads(line[6:])
            if "error" in value:
                self._ends("broken_off", code=str(value["error"]["code"]), detail=value["error"]["message"])
                return
            by = value["system_fingerprint"]
            made += bool(value["choices"][0]["delta"].get("content"))
            on_event(made)
            if self._wish.leaves_after is not None and made >= self._wish.leaves_after:
                self._ends("left")
                return
        self._ends("cut", detail="the stream ended without [DONE] and without an error")

    def _judge(self, answered_by: str, made: int) -> None:
        if answered_by != self._wish.model:
            self._ends("wrong", detail=f"answered by the engine of {answered_by}")
        elif made != self._wish.tokens:
            self._ends("wrong", detail=f"{made} tokens")
        else:
            self._ends("answered")


class Traffic:
    """*count* threads that ask the *models* one thing after the other, until they are told to pause or to end."""

    def __init__(self, host: str, port: int, seed: int, count: int = 6) -> None:
        self._address = (host, port)
        self._models: Sequence[str] = ()
        self._turn = threading.Condition()
        self._going = False
        self._ended = False
        self._busy = 0
        self._count = count
        self._tokens_read = 0
        self._outcomes: list[Outcome] = []
        self._threads = [
            threading.Thread(target=self._live, args=(random.Random(f"{seed}/{number}"),), daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def resume(self, models: Sequence[str]) -> None:
        with self._turn:
            self._models = models
            self._going = True
            self._tokens_read = 0
            self._turn.notify_all()

    def pause(self) -> None:
        """Returns once every request that was under way has ended."""
        with self._turn:
            self._going = False
            self._turn.wait_for(lambda: self._busy == 0, CLIENT_TIMEOUT * 3)

    def wait_flowing(self) -> None:
        """Until as many tokens of streams as there are clients have come since the last ``resume``."""
        with self._turn:
            flows = self._turn.wait_for(lambda: self._tokens_read >= self._count, CLIENT_TIMEOUT)
        assert flows, "no stream of any client makes progress"

    def end(self) -> None:
        with self._turn:
            self._ended = True
            self._turn.notify_all()
        for thread in self._threads:
            thread.join(CLIENT_TIMEOUT * 3)

    def ask(self, wish: Wish, on_event: Callable[[int], None] = lambda _: None) -> Outcome:
        """One request of the caller's own, which is judged with all others."""
        outcome = Exchange(*self._address, wish).run(on_event)
        with self._turn:
            self._outcomes.append(outcome)
        return outcome

    def begin(self, wish: Wish) -> "Asking":
        return Asking(self, wish)

    def take(self) -> list[Outcome]:
        """What has ended since the last time."""
        with self._turn:
            taken, self._outcomes = self._outcomes, []
        return taken

    def _live(self, rng: random.Random) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._ended or (self._going and bool(self._models)))
                if self._ended:
                    return
                self._busy += 1
                model = rng.choice(self._models)
            outcome = self.ask(_any_wish(model, rng), self._note_token)
            with self._turn:
                self._busy -= 1
                self._turn.notify_all()
                if outcome.kind in ("cut", "refused"):
                    self._turn.wait_for(lambda: self._ended, CLIENT_REST)

    def _note_token(self, _: int) -> None:
        with self._turn:
            self._tokens_read += 1
            if self._tokens_read == self._count:
                self._turn.notify_all()


class Asking:
    """A request in a thread of its own, for a fault that needs one to be under way."""

    def __init__(self, traffic: Traffic, wish: Wish) -> None:
        self._first = threading.Event()
        self._outcome: Outcome | None = None

        def run() -> None:
            self._outcome = traffic.ask(wish, lambda _: self._first.set())
            self._first.set()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def wait_first(self) -> None:
        assert self._first.wait(CLIENT_TIMEOUT), "no token of a stream came"

    def wait(self) -> Outcome:
        self._thread.join(CLIENT_TIMEOUT * 2)
        assert self._outcome is not None, "a request is stuck"
        return self._outcome


def _any_wish(model: str, rng: random.Random) -> Wish:
    stream = rng.random() < 0.6
    leaves_after = rng.randint(1, 10) if stream and rng.random() < 0.1 else None
    return Wish(model, stream, rng.randint(4, 50), leaves_after)

"""`rbee run`: find or load a worker of a model, ask it, and show the answer as it is written."""

import json
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import click

from rbee.cli.client import Hive
from rbee.cli.workers import COMING, READY, Record, canonical, changes_until_ready, listed, named

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Sampling:
    """What goes into the request beside the messages; None leaves it to the model."""

    max_tokens: int | None = None
    temperature: float | None = None

    def fields(self) -> dict[str, Any]:
        given = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(slots=True)
class Conversation:
    """The messages so far with one model."""

    hive: Hive
    model: str
    sampling: Sampling = field(default_factory=Sampling)
    messages: list[Message] = field(default_factory=list)

    def body(self, *, stream: bool) -> dict[str, Any]:
        return {"model": self.model, "messages": self.messages, "stream": stream, **self.sampling.fields()}

    def ask(self, prompt: str) -> Generator[str, None, None]:
        """The pieces of the answer. What was said of it stays in the conversation when it is stopped."""
        self.messages.append({"role": "user", "content": prompt})
        said: list[str] = []
        try:
            with closing(self.hive.events("POST", "/v1/chat/completions", self.body(stream=True))) as events:
                for piece in _pieces(events):
                    said.append(piece)
                    yield piece
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self.messages.pop()

    def ask_at_once(self, prompt: str) -> Any:
        """The API's answer as it is."""
        self.messages.append({"role": "user", "content": prompt})
        return self.hive.call("POST", "/v1/chat/completions", self.body(stream=False))


def _pieces(events: Iterator[str]) -> Iterator[str]:
    for data in events:
        if data == "[DONE]":
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise click.ClickException(chunk["error"].get("message", "The worker failed in the middle of its answer."))
        for choice in chunk.get("choices", ()):
            if piece := choice.get("delta", {}).get("content"):
                yield piece
    raise click.ClickException("The answer was cut off: the hive closed the connection before its end.")


def ensure_loaded(hive: Hive, model: str) -> None:
    """Return when a worker of *model* is ready: one that is there, one that is coming, or a new one."""
    workers = named(listed(hive), model)
    if any(worker["state"] in READY for worker in workers):
        return
    coming = [worker for worker in workers if worker["state"] in COMING]
    worker = coming[0] if coming else hive.call("POST", "/v1/workers/spawn", {"model_ref": model})
    for changed in changes_until_ready(hive, worker["worker_id"]):
        tell(changed)


def tell(worker: Record) -> None:
    """A change of state, for the person who waits."""
    about = f": {worker['message']}" if worker.get("message") else ""
    click.echo(f"{worker['worker_id']} {worker['state']}{about}", err=True)


def write(pieces: Iterator[str]) -> None:
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


def chat(conversation: Conversation) -> None:
    """Ask until end of input. Ctrl+C stops the answer, not the conversation."""
    # Imported for its effect on input(): history and editing of the line.
    import readline  # noqa: F401, PLC0415

    click.echo("Ctrl+C stops an answer, Ctrl+D ends.", err=True)
    while True:
        try:
            prompt = input(">>> ").strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()
            continue
        if prompt:
            _answer(conversation, prompt)


def _answer(conversation: Conversation, prompt: str) -> None:
    pieces = conversation.ask(prompt)
    try:
        write(pieces)
    except KeyboardInterrupt:
        click.echo()
    except click.ClickException as error:
        error.show()
    finally:
        pieces.close()


def run(hive: Hive, model: str, prompt: str | None, sampling: Sampling, system: str | None, as_json: bool) -> None:
    """Answer *prompt*, or what stands on standard input, or talk to the person at the terminal."""
    terminal = sys.stdin.isatty()
    if prompt is None and not terminal:
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise click.UsageError("There is no PROMPT, and standard input is empty.")
    if prompt is None and as_json:
        raise click.UsageError("--json wants a PROMPT, or one on standard input.")
    ensure_loaded(hive, model)
    conversation = Conversation(hive, canonical(model), sampling)
    if system:
        conversation.messages.append({"role": "system", "content": system})
    if prompt is None:
        chat(conversation)
    elif as_json:
        click.echo(json.dumps(conversation.ask_at_once(prompt), indent=2, ensure_ascii=False))
    else:
        write(conversation.ask(prompt))

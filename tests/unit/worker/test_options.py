import sys
from typing import Any

import pytest

from rbee.worker import options
from rbee.worker.wire import Address

GIVEN = ["--worker-id", "test-worker", "--model", "/m.gguf", "--model-ref", "hf:test/model"]


def test_the_command_line_of_the_quick_start_is_read() -> None:
    found = options.read(
        [*GIVEN, *["--backend", "cpu", "--device", "0", "--port", "8081", "--callback-url", "http://localhost:9200"]],
        {"RBEE_API_TOKEN": "t" * 16},
    )
    assert (found.worker_id, found.model_ref, found.backend, found.device) == ("test-worker", "hf:test/model", "cpu", 0)
    assert (found.port, found.port_last, found.host) == (8081, 9000, "127.0.0.1")
    assert found.callback == Address("localhost", 9200)
    assert (found.engine, found.slots, found.ctx_size, found.prompt_cache) == ("llama-cpp", 4, 4096, 536_870_912)
    assert (found.heartbeat_interval, found.orphan_timeout, found.drain_timeout) == (None, 300.0, 30.0)
    assert (found.token, found.engine_python, found.incarnation) == ("t" * 16, sys.executable, None)


def test_one_device_or_several_are_read() -> None:
    one = options.read([*GIVEN, "--device", "1"], {})
    assert (one.device, one.devices, one.tensor_split) == (1, (1,), ())
    several = options.read([*GIVEN, "--devices", "2,0", "--tensor-split", "0.25,0.75"], {})
    assert (several.device, several.devices, several.tensor_split) == (2, (2, 0), (0.25, 0.75))


def test_all_after_two_dashes_is_the_engines() -> None:
    found = options.read([*GIVEN, "--", "--threads", "2", "--flash-attn=on"], {})
    assert found.engine_args == {"--threads": 2, "--flash-attn": "on"}


@pytest.mark.parametrize(
    ("port", "last"), [("8081", 9000), ("8000", 9000), ("9100", 10019), ("65000", 65535), ("65535", 65535)]
)
def test_the_last_port_follows_the_first(port: str, last: int) -> None:
    assert options.read([*GIVEN, "--port", port], {}).port_last == last


def test_the_workers_own_token_goes_before_the_general_one() -> None:
    assert options.read(GIVEN, {"RBEE_WORKER_TOKEN": "own", "RBEE_API_TOKEN": "general"}).token == "own"
    assert options.read(GIVEN, {"RBEE_WORKER_TOKEN": "", "RBEE_API_TOKEN": "general\n"}).token == "general"
    assert options.read(GIVEN, {}).token == ""


def test_a_command_has_many_slots_and_needs_its_template() -> None:
    environment = {"RBEE_ENGINE_COMMAND": '["vllm", "serve", "{model}"]', "RBEE_ENGINE_HEALTH_PATH": "/ping"}
    found = options.read([*GIVEN, "--engine", "command"], environment)
    assert (found.slots, found.template, found.health_path) == (256, ("vllm", "serve", "{model}"), "/ping")
    assert options.read([*GIVEN, "--engine", "command", "--slots", "8"], environment).slots == 8


def test_the_synthetic_engine_needs_no_model() -> None:
    found = options.read(["--worker-id", "w", "--model-ref", "synthetic:x", "--engine", "synthetic"], {})
    assert found.model == ""


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--worker-id", "../w"], {}, "--worker-id"),
        (["--worker-id", ""], {}, "--worker-id"),
        (["--model", ""], {}, "--model is required"),
        (["--model-ref", "a\nb"], {}, "--model-ref"),
        (["--backend", "abacus"], {}, "--backend"),
        (["--device", "-1"], {}, "--device"),
        (["--devices", "0,,1"], {}, "--devices"),
        (["--devices", "0,0"], {}, "each once"),
        (["--devices", ",".join(map(str, range(17)))], {}, "at most 16"),
        (["--devices", "0,1", "--tensor-split", "1"], {}, "1 shares for 2 devices"),
        (["--tensor-split", "nan"], {}, "--tensor-split"),
        (["--devices", "0,1", "--tensor-split", "0,0"], {}, "--tensor-split"),
        (["--devices", "0,1", "--tensor-split", "-1,2"], {}, "--tensor-split"),
        (["--port", "0"], {}, "--port"),
        (["--port", "65536"], {}, "--port"),
        (["--port", "\u0663"], {}, "--port"),
        (["--port", "9000", "--port-last", "8999"], {}, "--port-last 8999 is below --port 9000"),
        (["--callback-url", "ftp://hive"], {}, "--callback-url"),
        (["--callback-url", "http://"], {}, "--callback-url"),
        (["--callback-url", "http://hive:port"], {}, "--callback-url"),
        (["--callback-url", "http://user:secret@hive"], {}, "no user or password"),
        (["--callback-url", "unix:relative"], {}, "absolute"),
        (["--engine", "steam"], {}, "--engine"),
        (["--engine-python", "/no/such/python"], {}, "--engine-python"),
        (["--worker-id", "w" * 64], {}, "at most 63"),
        (["--slots", "0"], {}, "--slots"),
        (["--slots", "1025"], {}, "from 1 to 1024"),
        (["--heartbeat-interval", "0"], {}, "--heartbeat-interval"),
        (["--heartbeat-interval", "nan"], {}, "--heartbeat-interval"),
        (["--orphan-timeout", "inf"], {}, "--orphan-timeout"),
        (["--drain-timeout", "-1"], {}, "--drain-timeout"),
        (["--end-timeout", "0"], {}, "--end-timeout"),
        (["--incarnation", "x"], {}, "--incarnation"),
        (["--unknown", "x"], {}, "--unknown"),
        (["--", "--unknown", "x"], {}, "--unknown"),
        (["--", "--threads"], {}, "--threads needs a value"),
        ([], {"RBEE_WORKER_TOKEN": "one\ntwo"}, "RBEE_WORKER_TOKEN holds characters"),
        (["--engine", "command"], {}, "RBEE_ENGINE_COMMAND"),
        (["--engine", "command"], {"RBEE_ENGINE_COMMAND": "vllm serve"}, "RBEE_ENGINE_COMMAND"),
        (["--engine", "command"], {"RBEE_ENGINE_COMMAND": "[1]"}, "RBEE_ENGINE_COMMAND"),
        (["--engine", "command"], {"RBEE_ENGINE_COMMAND": "[]"}, "RBEE_ENGINE_COMMAND"),
        ([], {"RBEE_ENGINE_HEALTH_PATH": "ping"}, "RBEE_ENGINE_HEALTH_PATH"),
        *[
            ([], {"RBEE_WORKER_SPEC": text}, "RBEE_WORKER_SPEC must be a JSON object of at most 65536 bytes")
            for text in ("{", "[]", '"text"', '{"x": NaN}', '{"x":' * 20_000, '{"x": "' + "x" * 65_528 + '"}')
        ],
    ],
)
def test_a_bad_value_gets_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], environment: dict[str, str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        options.read([*GIVEN, *arguments], environment)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert "one\ntwo" not in message


def test_drain_timeout_zero_and_long_times_are_taken() -> None:
    arguments: list[Any] = [*GIVEN, "--drain-timeout", "0", "--orphan-timeout", "86400"]
    found = options.read(arguments, {})
    assert (found.drain_timeout, found.orphan_timeout) == (0.0, 86400.0)


def test_the_hives_description_is_taken_as_it_is() -> None:
    assert options.read(GIVEN, {}).spec is None
    assert options.read(GIVEN, {"RBEE_WORKER_SPEC": ""}).spec is None
    assert options.read(GIVEN, {"RBEE_WORKER_SPEC": '{"a": [1, null], "b": {"c": "\u00e9"}}'}).spec == {
        "a": [1, None],
        "b": {"c": "\u00e9"},
    }
    assert options.read(GIVEN, {"RBEE_WORKER_SPEC": '{"x": "' + "x" * 65_527 + '"}'}).spec is not None


def test_what_the_hive_would_take_is_taken() -> None:
    """The same limits as those of the control API."""
    arguments = ["--model", "/m.gguf", "--model-ref", "hf:test/model", "--worker-id", "w" * 63, "--slots", "1024"]
    assert options.read(arguments, {}).slots == 1024

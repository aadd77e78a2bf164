import signal

import pytest

from rbee.worker import reason
from rbee.worker.output import engine_lines

PREFACE = [
    "0.00.000.377 I srv          init: initializing ...",
    "0.00.002.690 I srv    load_model: loading model 'm.gguf'",
]
GENERIC = [
    "0.00.035.242 E llama_model_load_from_file_impl: failed to load model",
    "0.00.035.248 E cmn  common_init_: failed to load model 'm.gguf'",
    "0.00.035.250 E srv    load_model: failed to load model, 'm.gguf'",
    "0.00.035.255 I srv    operator(): operator(): cleaning up before exit...",
    "0.00.035.794 E srv          init: exiting due to model loading error",
    "the engine could not start: Failed to init server, please check the input params.",
]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["0.00.035.219 E llama_model_load: error loading model: tensor 'a' data is not within the file bounds"],
            "tensor 'a' data is not within the file bounds",
        ),
        (
            [
                "0.00.002.615 E gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'",
                "0.00.002.745 E llama_model_load: error loading model: llama_model_loader: failed to load model from m",
            ],
            "invalid magic characters: 'hell', expected 'GGUF'",
        ),
        (
            ["0.00.205.678 E llama_init_from_model: quantized V cache requires flash_attn to be enabled"],
            "quantized V cache requires flash_attn to be enabled",
        ),
    ],
)
def test_of_many_errors_the_precise_one_is_the_reason(lines: list[str], expected: str) -> None:
    found = reason.load_failure(1, [*PREFACE, *lines, *GENERIC])
    assert found == f"the engine ended with exit code 1 while it loaded: {expected}"


def test_generic_errors_are_better_than_none() -> None:
    assert "failed to load model" in reason.load_failure(1, [*PREFACE, *GENERIC])


def test_of_a_traceback_the_last_line_is_the_reason() -> None:
    lines = ["Traceback (most recent call last):", '  File "x.py", line 1, in <module>', "    raise X", "KeyError: 'a'"]
    assert reason.load_failure(1, lines).endswith("KeyError: 'a'")


def test_a_crash_is_explained_by_what_came_last() -> None:
    old = ["0.01.000.000 E srv  send_error: task id = 1, error: prompt too long"]
    work = [f"0.02.000.{i:03} I slot print_timing: id 0" for i in range(100)]
    last = ["/src/ggml.c:123: GGML_ASSERT(a->ne[0] == b) failed"]
    found = reason.crash(-signal.SIGABRT, [*old, *work, *last])
    assert found == f"the engine was killed by SIGABRT: {last[0]}"


def test_without_an_error_the_last_line_is_quoted() -> None:
    assert reason.crash(3, ["first", "last"]) == "the engine ended with exit code 3: last"


def test_without_any_line_the_status_is_the_reason() -> None:
    assert reason.crash(0, []) == "the engine ended with exit code 0"
    assert reason.load_failure(-64, []).startswith("the engine was killed by signal 64") or "SIGRTMAX" in (
        reason.load_failure(-64, [])
    )


def test_a_kill_has_nothing_to_do_with_what_was_said_before_it():
    said = ["0.00.419.107 I srv          init: listening", "error: a request that was refused"]
    assert reason.crash(-signal.SIGKILL, said) == "the engine was killed by SIGKILL"
    assert "refused" in reason.crash(-signal.SIGSEGV, said)


def test_a_reason_is_of_bounded_length() -> None:
    assert len(reason.crash(1, ["error " + "x" * 10_000])) == reason.MAX_REASON


def test_the_keepers_own_lines_are_not_the_engines() -> None:
    text = b"2026-11-24T09:25:14.959Z info Engine started engine=x\nreal line\n\n  \n\xff broken\n"
    assert engine_lines(text) == ["real line", "\ufffd broken"]

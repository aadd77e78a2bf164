import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.core.engine_args import ALLOWED, MAX_TEXT, check, parse
from rbee.core.errors import InvalidField

GOOD = {
    "llama-cpp": [
        "--cache-type-k q8_0 --cache-type-v q8_0 --flash-attn on",
        "--threads 4 --threads-batch=8 --n-gpu-layers 0",
        "--embedding --pooling mean",
        "--reranking",
        "--reranking --pooling rank",
        "--no-mmap --mlock",
        "--mmap --mlock",
        "--cache-type-v q8_0 --flash-attn auto",
    ],
    "synthetic": [
        "--load-seconds 0 --first-token-seconds 0.01 --tokens-per-second 1e6 --hold-bytes 0 --crash-after 2",
        "--stall-load --hang-after 0 --fork-holder session",
        "--map-bytes 1048576 --vram-bytes=8589934592",
    ],
    "command": [""],
}


@pytest.mark.parametrize(("engine", "line"), [(engine, line) for engine, lines in GOOD.items() for line in lines])
def test_what_an_engine_takes_passes(engine: str, line: str) -> None:
    check(engine, line.split())


def test_values_come_back_in_their_types() -> None:
    arguments = ["--load-seconds=0.5", "--hold-bytes", "10", "--fail-load", "--no such thing"]
    assert parse("synthetic", arguments) == {
        "--load-seconds": 0.5,
        "--hold-bytes": 10,
        "--fail-load": "--no such thing",
    }
    assert parse("llama-cpp", ["--embedding", "--threads", "2"]) == {"--embedding": True, "--threads": 2}


@pytest.mark.parametrize(
    ("engine", "arguments", "words"),
    [
        ("steam", [], "There is no engine 'steam'"),
        ("llama-cpp", ["--api-key", "x"], "no argument '--api-key'; it takes --cache-type-k"),
        ("llama-cpp", ["threads", "2"], "no argument 'threads'"),
        ("llama-cpp", ["--threads"], "--threads needs a value"),
        ("llama-cpp", ["--threads", "0"], "--threads must be a whole number from 1 to 1024, not '0'"),
        ("llama-cpp", ["--threads", "\u0664"], "--threads must be"),
        ("llama-cpp", ["--threads", "1e2"], "--threads must be"),
        ("llama-cpp", ["--threads", "2", "--threads", "3"], "--threads is given twice"),
        ("llama-cpp", ["--embedding=yes"], "--embedding takes no value"),
        ("llama-cpp", ["--cache-type-k", "q3"], "--cache-type-k must be one of f32"),
        ("llama-cpp", ["--cache-type-v", "q8_0", "--flash-attn", "off"], "needs --flash-attn"),
        ("llama-cpp", ["--reranking", "--pooling", "mean"], "--pooling rank"),
        ("llama-cpp", ["--no-mmap", "--mmap"], "Only one of --mmap and --no-mmap"),
        ("llama-cpp", ["--chat-template", "chatml"], "a Jinja template"),
        ("llama-cpp", ["--chat-template", "{{ x }}" + "y" * MAX_TEXT], "a Jinja template"),
        ("synthetic", ["--tokens-per-second", "0"], "a number above 0"),
        ("synthetic", ["--load-seconds", "nan"], "a number of at least 0"),
        ("synthetic", ["--load-seconds", "-1"], "a number of at least 0"),
        ("synthetic", ["--fail-load", ""], "a message"),
        ("synthetic", ["--fork-holder", "thread"], "--fork-holder must be one of group, session"),
        ("synthetic", ["--hang-after", "-1"], "--hang-after must be a whole number from 0"),
        ("command", ["--port", "1"], "takes no arguments in a request"),
    ],
)
def test_what_it_does_not_take_is_named(engine: str, arguments: list[str], words: str) -> None:
    with pytest.raises(InvalidField) as refused:
        check(engine, arguments)
    assert words in refused.value.message
    assert refused.value.details["field"] in ("engine", "engine_args")


@given(
    st.sampled_from(sorted(ALLOWED)), st.lists(st.text(max_size=200) | st.sampled_from(sorted(ALLOWED["llama-cpp"])))
)
def test_any_list_of_strings_is_taken_or_refused(engine: str, arguments: list[str]) -> None:
    message = ""
    try:
        parse(engine, arguments)
    except InvalidField as refused:
        message = refused.message
    assert len(message) < 600
    assert all(c.isprintable() for c in message)

import pytest

from rbee.core.launch import EngineOptions, served_names
from rbee.core.worker import WorkerSpec

SPEC = WorkerSpec("w1", "hf:a/b", "cpu", 0, alias="b")


def test_an_engine_of_ours_takes_every_name_but_the_built_in_one():
    assert served_names(SPEC, EngineOptions(), "/m.gguf") == ("b", "hf:a/b", "w1")


@pytest.mark.parametrize(
    ("command", "served"),
    [
        (("vllm", "{model}", "--served-model-name", "{names}"), ("b", "hf:a/b", "w1")),
        (("server", "--alias={names}"), ("b", "hf:a/b", "w1")),
        (("server", "{model}"), ("/models/b",)),
        (("server", "--port", "{port}"), ()),
    ],
)
def test_a_command_takes_what_its_template_passes(command, served):
    assert served_names(SPEC, EngineOptions(command), "/models/b") == served


def test_a_path_that_is_not_known_is_no_name():
    assert served_names(SPEC, EngineOptions(("server", "{model}")), "") == ()

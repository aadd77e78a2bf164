"""What an order means where the settings name its engine."""

import pytest

from rbee.core.errors import InvalidField
from rbee.hive.orders import Defaults, Order, specify

KINDS = {"cuda": "llama-cpp", "vllm": "command"}


def test_an_engine_takes_the_arguments_of_its_kind():
    spec = specify(Order("file:/m.gguf", engine="cuda", engine_args=("--threads", "2")), Defaults(kinds=KINDS))
    assert (spec.engine, spec.slots) == ("cuda", 4)
    with pytest.raises(InvalidField):
        specify(Order("file:/m.gguf", engine="vllm", engine_args=("--threads", "2")), Defaults(kinds=KINDS))


def test_a_command_has_many_slots():
    assert specify(Order("file:/m.gguf", engine="vllm"), Defaults(kinds=KINDS)).slots == 256

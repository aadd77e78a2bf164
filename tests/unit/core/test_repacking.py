"""Which models are read into memory, since the processor would hold them twice if they were mapped."""

import pytest

from rbee.core.claims import Placement
from rbee.core.repacking import added_args
from tests.headers import header

CPU = Placement()


def added(model, *args, placement=CPU, processor="x86_64"):
    return added_args(model, args, placement, processor)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "IQ4_NL", "Q2_K", "MXFP4"])
def test_a_model_that_would_be_in_memory_twice_is_read(kind):
    assert added(header((kind, 90), ("Q6_K", 10))) == ("--no-mmap",)


@pytest.mark.parametrize("kind", ["F16", "Q4_1", "Q8_0", "Q6_K", "Q5_K"])
def test_a_model_that_is_used_as_it_lies_in_its_file_is_mapped(kind):
    assert added(header((kind, 100))) == ()


def test_a_tenth_of_the_model_is_enough():
    assert added(header(("Q4_K", 10), ("F16", 50), input_bytes=40)) == ("--no-mmap",)
    assert added(header(("Q4_K", 9), ("F16", 50), input_bytes=41)) == ()


def test_a_model_without_weights_is_mapped():
    assert added(header()) == ()


@pytest.mark.parametrize("asked", ["--mmap", "--no-mmap"])
def test_who_says_how_to_load_it_is_obeyed(asked):
    assert added(header(("Q4_0", 100)), asked) == ()


def test_what_else_was_asked_changes_nothing():
    assert added(header(("Q4_0", 100)), "--threads", "2", "--mlock") == ("--no-mmap",)


def test_beside_a_device_it_is_mapped():
    assert added(header(("Q4_0", 100)), placement=Placement("cuda", (0,), (1.0,))) == ()


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_K", "Q6_K"])
def test_other_processors_repack_more(kind):
    assert added(header((kind, 100)), processor="aarch64") == ("--no-mmap",)
    assert added(header((kind, 100)), processor="AMD64") == ()

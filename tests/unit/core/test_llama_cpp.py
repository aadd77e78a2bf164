"""How llama.cpp is set up, on bare numbers."""

import pytest

from rbee.core import llama_cpp


@pytest.mark.parametrize(
    ("ctx_size", "args", "batch"),
    [
        (4096, {}, 512),
        (4096, {"--embedding": True}, 4096),
        (256, {"--embedding": True}, 512),
        (100_000, {"--reranking": True}, 8192),
    ],
)
def test_an_embedding_model_takes_a_whole_input_at_once(ctx_size, args, batch):
    assert llama_cpp.batch_of(ctx_size, args) == batch


def test_the_prompt_cache_is_granted_in_whole_mebibytes():
    assert llama_cpp.prompt_cache_mib(3 * 2**20 - 1) == 2

"""What fuzzing starts from: small headers that between them reach every branch of the reader."""

from collections.abc import Sequence
from pathlib import Path

from tests.gguf_files import Model, header, sized, tensor

HYBRID = {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16, "ssm.group_count": 2}
WINDOWED = {
    "attention.sliding_window": 512,
    "attention.sliding_window_pattern": [True, False],
    "attention.head_count_kv": [2, 1],
}


def seeds() -> Sequence[bytes]:
    tokens = {
        "tokenizer.ggml.tokens": ["", "a", "b" * 300],
        "tokenizer.ggml.scores": [0.5, 1.5, 2.5],
        "tokenizer.chat_template": "{{ messages }}",
        "general.alignment": 32,
    }
    keys = list(Model(general=tokens).keys.items())
    quantised = [tensor("token_embd.weight", (256, 2), 12), tensor("blk.0.ffn_up.weight", (32, 2), 8, 288)]
    recurrent = {0: ["ssm_out.weight"], 1: ["attn_k.weight"]}
    return [
        Model(general=tokens).raw(),
        Model("gemma3", extra=WINDOWED).raw(),
        Model("qwen3next", extra=HYBRID, layer_tensors=recurrent).raw(),
        sized(header(keys, quantised, version=2), 288 + 68),
    ]


def second_part(folder: Path) -> bytes:
    """Writes the first part of a model of two into *folder*, and returns a true second one."""
    parts = Model().split(folder, 2)
    raw = parts[1].read_bytes()
    parts[1].unlink()
    return raw

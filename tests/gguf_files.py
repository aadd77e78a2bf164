"""Writes GGUF files for tests: whole models in a few bytes, and whatever no program should ever write."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = 4, 5, 6, 7, 8, 9, 10, 11, 12
LETTERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
F32_TYPE, F16_TYPE, Q4_0_TYPE, Q4_K_TYPE = 0, 1, 2, 12
Q4_0_BLOCK, Q4_0_BLOCK_BYTES = 32, 18
ALIGNMENT = 32


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value(content: Any) -> bytes:
    """A value with its type before it: of the kind that converters write for it."""
    match content:
        case bytes():
            return content
        case bool():
            return struct.pack("<I?", BOOL, content)
        case int():
            kind = U32 if 0 <= content < 2**32 else I64 if content < 0 else U64
            return struct.pack(f"<I{LETTERS[kind]}", kind, content)
        case float():
            return struct.pack("<If", F32, content)
        case str():
            return struct.pack("<I", STRING) + text(content)
        case [str(), *_]:
            return struct.pack("<IIQ", ARRAY, STRING, len(content)) + b"".join(text(one) for one in content)
        case [bool(), *_]:
            return struct.pack(f"<IIQ{len(content)}?", ARRAY, BOOL, len(content), *content)
        case [float(), *_]:
            return struct.pack(f"<IIQ{len(content)}f", ARRAY, F32, len(content), *content)
    return struct.pack(f"<IIQ{len(content)}i", ARRAY, I32, len(content), *content)


def tensor(name: str, shape: Sequence[int], kind: int = F32_TYPE, offset: int = 0) -> bytes:
    rank = len(shape)
    return text(name) + struct.pack(f"<I{rank}QIQ", rank, *shape, kind, offset)


def header(
    keys: Sequence[tuple[str, Any]],
    tensors: Sequence[bytes] = (),
    *,
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """The bytes before the tensors; the counts are true unless said."""
    start = struct.pack(
        "<4sIQQ",
        b"GGUF",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    return start + b"".join(text(key) + value(content) for key, content in keys) + b"".join(tensors)


def sized(raw: bytes, data_bytes: int) -> bytes:
    """*raw* with so many bytes of tensors after it."""
    return raw + bytes(-len(raw) % ALIGNMENT + data_bytes)


class Model:
    """A model of a given architecture, whose tensors are F32 of one block of 32 elements (128 bytes) unless said.

    *extra*: keys without the architecture's name before them. *layers*: names of the tensors in each layer.
    """

    def __init__(
        self,
        architecture: str = "llama",
        layers: int = 2,
        extra: Mapping[str, Any] | None = None,
        general: Mapping[str, Any] | None = None,
        layer_tensors: Mapping[int, Sequence[str]] | None = None,
        others: Sequence[str] = ("token_embd.weight", "output_norm.weight", "output.weight"),
    ) -> None:
        self.keys = {"general.architecture": architecture, **(general or {})}
        said = {
            "block_count": layers,
            "context_length": 4096,
            "embedding_length": 64,
            "feed_forward_length": 256,
            "attention.head_count": 4,
            "attention.head_count_kv": 2,
        }
        said |= extra or {}
        self.keys |= {f"{architecture}.{name}": content for name, content in said.items() if content is not None}
        names = layer_tensors or {}
        self.tensors = list(others)
        for layer in range(layers):
            self.tensors += [f"blk.{layer}.{name}" for name in names.get(layer, ("attn_k.weight", "ffn_up.weight"))]

    def write(self, path: Path) -> Path:
        path.write_bytes(self.raw())
        return path

    def raw(self) -> bytes:
        return one_file(self.keys, self.tensors)

    def split(self, folder: Path, count: int, stem: str = "model") -> list[Path]:
        """As gguf-split writes it: all keys in the first part, the tensors dealt over all."""
        paths = []
        for number in range(count):
            keys = dict(self.keys) if number == 0 else {}
            keys |= {"split.no": number, "split.count": count, "split.tensors.count": len(self.tensors)}
            path = folder / f"{stem}-{number + 1:05}-of-{count:05}.gguf"
            path.write_bytes(one_file(keys, self.tensors[number::count]))
            paths.append(path)
        return paths


def one_file(keys: Mapping[str, Any], names: Sequence[str]) -> bytes:
    tensors = [tensor(name, (32,), F32_TYPE, 128 * number) for number, name in enumerate(names)]
    return sized(header(list(keys.items()), tensors), 128 * len(names))


def zero_llama(path: Path, layers: int = 3, width: int = 2048, feed_forward: int = 8192) -> Path:
    """A llama of Q4_0 that llama.cpp loads, all weights zero: 34 MB a layer. Its tokens are bytes, its output tied."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(f"t{n}" for n in range(61))]
    keys: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.context_length": 4096,
        "llama.embedding_length": width,
        "llama.feed_forward_length": feed_forward,
        "llama.attention.head_count": width // 64,
        "llama.attention.head_count_kv": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 64,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 61],
    }
    matrices = {"token_embd": (width, len(tokens))}
    for layer in range(layers):
        inner = {"attn_q": width, "attn_k": 256, "attn_v": 256, "attn_output": width}
        inner |= {"ffn_gate": feed_forward, "ffn_up": feed_forward}
        matrices |= {f"blk.{layer}.{name}": (width, rows) for name, rows in inner.items()}
        matrices[f"blk.{layer}.ffn_down"] = (feed_forward, width)
    norms = ["output_norm", *(f"blk.{layer}.{name}" for layer in range(layers) for name in ("attn_norm", "ffn_norm"))]
    tensors, end = [], 0
    for name, shape in [*matrices.items(), *((name, (width,)) for name in norms)]:
        kind = Q4_0_TYPE if name in matrices else F32_TYPE
        tensors.append(tensor(f"{name}.weight", shape, kind, end))
        end += shape[0] * shape[1] // Q4_0_BLOCK * Q4_0_BLOCK_BYTES if len(shape) == 2 else 4 * width
    raw = header(list(keys.items()), tensors)
    with path.open("wb") as file:
        file.write(raw + bytes(-len(raw) % ALIGNMENT))
        file.truncate(file.tell() + end)
    return path

"""Limits that the control API and the worker's own command line share. The keeper imports them: no dataclasses here."""

from typing import Final

MAX_SLOTS: Final = 1024
MAX_CTX_SIZE: Final = 16 * 2**20
"""Tokens of one request."""

MAX_DEVICES: Final = 16
"""Devices that llama.cpp uses together (GGML_CUDA_MAX_DEVICES, GGML_VK_MAX_DEVICES)."""

MAX_NAME: Final = 63
"""Characters of a worker's id, or an engine's name."""

MAX_SPEC_BYTES: Final = 65_536
"""Bytes of RBEE_WORKER_SPEC. One variable of an environment may have 128 KiB (MAX_ARG_STRLEN, execve(2)); the escapes
of an announcement make at most three times as many bytes of it, which the hive still takes (MAX_CONTROL_BODY_BYTES)."""

"""The environment of a child, built from what is known to be needed: nothing else of ours gets in, no token least."""

from collections.abc import Mapping
from typing import Final

_NAMES: Final = frozenset(
    (
        *("HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "TERM", "TZ"),
        *("SSL_CERT_FILE", "TEMP", "TMP", "TMPDIR", "USER", "VIRTUAL_ENV", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"),
    )
)
_PREFIXES: Final = (
    *("LC_", "XDG_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GGML_", "LLAMA_", "VK_", "CUDA_", "NVIDIA_"),
    *("NCCL_", "HIP_", "ROCR_", "ROCM_", "HSA_", "GPU_", "AMD_", "ONEAPI_", "SYCL_", "ZE_", "VLLM_", "SGLANG_"),
    *("TORCH_", "PYTORCH_", "TRITON_"),
)
_SECRET: Final = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")

_VISIBLE_DEVICES: Final = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "rocm": "HIP_VISIBLE_DEVICES",
    "vulkan": "GGML_VK_VISIBLE_DEVICES",
}


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """What a keeper and its engine may see of *environ*: paths, locale, switches of drivers and
    engines, but no secret."""
    return {
        name: value
        for name, value in environ.items()
        if (name in _NAMES or name.startswith(_PREFIXES)) and not any(word in name.upper() for word in _SECRET)
    }


def device_variables(backend: str, device: int, environ: Mapping[str, str]) -> dict[str, str]:
    """What makes *device* the only one that the engine sees, unless whoever started us has chosen already.

    CUDA's own order is by speed; by bus, the numbers are those that nvidia-smi shows.
    """
    name = _VISIBLE_DEVICES.get(backend)
    if name is None or name in environ:
        return {}
    variables = {name: str(device)}
    if backend == "cuda":
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return variables

"""The environment of a child, built from what is known to be needed: nothing else of ours gets in, no token least."""

from collections.abc import Mapping, Sequence
from typing import Final

from rbee.core.claims import Placement

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

NO_DEVICES: Final = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1", "GGML_VK_VISIBLE_DEVICES": ""}
"""Hides them all: a build for a GPU would open it, and take some of its memory, also where no layer goes there. HIP
takes an empty list for none given; ggml's Vulkan does not, and ends over a number that is not there."""


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """What a keeper and its engine may see of *environ*: paths, locale, switches of drivers and
    engines, but no secret."""
    return {
        name: value
        for name, value in environ.items()
        if (name in _NAMES or name.startswith(_PREFIXES)) and not any(word in name.upper() for word in _SECRET)
    }


def device_variables(backend: str, devices: Sequence[int], environ: Mapping[str, str]) -> dict[str, str]:
    """What makes *devices* the only ones that the engine sees, unless whoever started us has chosen already.

    CUDA's own order is by speed; by bus, the numbers are those that nvidia-smi shows.
    """
    name = _VISIBLE_DEVICES.get(backend)
    if name is None or name in environ:
        return {}
    variables = {name: ",".join(map(str, devices))}
    if backend == "cuda":
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return variables


def placed(placement: Placement, uuids: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """What a worker is told of its *placement* by the hive, which chose among the devices that *environ* leaves it.

    By *uuids* where there are as many: they mean the same device in any order of counting. Without, numbers are places
    in what the hive was given itself.
    """
    name = _VISIBLE_DEVICES.get(placement.backend)
    if name is None:
        # Only what a driver told of could have been asked for; a command for another GPU still runs as the CPU's.
        return {"CUDA_VISIBLE_DEVICES": ""} if placement.backend == "cpu" else {}
    if uuids and len(uuids) == len(placement.devices):
        return {name: ",".join(uuids)}
    given = [part.strip() for part in environ.get(name, "").split(",") if part.strip()]
    chosen = [given[number] if number < len(given) else str(number) for number in placement.devices]
    variables = {name: ",".join(chosen)}
    if placement.backend == "cuda" and not given:
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return variables


def sees(visible: str | None, index: int, uuid: str) -> bool:
    """Whether CUDA_VISIBLE_DEVICES, None where it is not set, shows a device: by its number, or how its UUID begins.

    As CUDA reads it, the list ends at the first entry that names nothing, such as -1.
    """
    if visible is None:
        return True
    for part in visible.split(","):
        entry = part.strip()
        if not entry.isdecimal() and not entry.startswith("GPU-"):
            return False
        if entry == str(index) or (entry.startswith("GPU-") and uuid.startswith(entry)):
            return True
    return False

import pytest

from rbee.core.claims import Placement
from rbee.core.environment import inherited, placed, sees


def test_what_the_service_manager_gave_the_hive_reaches_no_worker():
    """With NOTIFY_SOCKET a worker could speak for the hive, with LISTEN_FDS take its sockets for its own."""
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    names += ("MAINPID", "INVOCATION_ID", "JOURNAL_STREAM", "STATE_DIRECTORY", "MANAGERPID", "CREDENTIALS_DIRECTORY")
    assert inherited({**dict.fromkeys(names, "x"), "PATH": "/usr/bin"}) == {"PATH": "/usr/bin"}


def test_no_secret_and_none_of_our_own_settings_reach_a_worker():
    given = {"RBEE_API_TOKEN": "t", "HF_TOKEN": "t", "VLLM_API_KEY": "t", "RBEE_HIVE__SERVER__PORT": "1"}
    assert inherited({**given, "VLLM_USE_V1": "1", "HOME": "/root"}) == {"VLLM_USE_V1": "1", "HOME": "/root"}


BY_BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("placement", "uuids", "given", "told"),
    [
        (Placement(), (), {"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": ""}),
        (Placement("cuda", (2, 0)), ("GPU-c", "GPU-a"), {}, {"CUDA_VISIBLE_DEVICES": "GPU-c,GPU-a"}),
        (Placement("cuda", (1,)), ("GPU-b",), {"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}),
        (Placement("cuda", (1,)), (), {}, {"CUDA_VISIBLE_DEVICES": "1", **BY_BUS}),
        (Placement("cuda", (1, 0)), ("GPU-b",), {}, {"CUDA_VISIBLE_DEVICES": "1,0", **BY_BUS}),
        (Placement("cuda", (1,)), (), {"CUDA_VISIBLE_DEVICES": "5, GPU-x"}, {"CUDA_VISIBLE_DEVICES": "GPU-x"}),
        (Placement("rocm", (0, 2)), (), {}, {"HIP_VISIBLE_DEVICES": "0,2"}),
        (Placement("vulkan", (1,)), (), {}, {"GGML_VK_VISIBLE_DEVICES": "1"}),
        (Placement("metal", (0,)), (), {}, {}),
    ],
)
def test_a_worker_sees_the_devices_of_its_placement_in_their_order(placement, uuids, given, told):
    assert placed(placement, uuids, given) == told


@pytest.mark.parametrize(
    ("visible", "index", "uuid", "shown"),
    [
        (None, 3, "GPU-d", True),
        ("", 0, "GPU-a", False),
        ("0, 3", 3, "GPU-d", True),
        ("GPU-d", 3, "GPU-d123", True),
        ("GPU-d", 0, "GPU-a123", False),
        ("-1,3", 3, "GPU-d", False),
        ("NoDevFiles", 0, "GPU-a", False),
        ("13", 3, "GPU-d", False),
    ],
)
def test_what_was_hidden_from_the_hive_stays_hidden(visible, index, uuid, shown):
    assert sees(visible, index, uuid) is shown

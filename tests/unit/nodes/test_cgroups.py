from pathlib import Path

import pytest

from rbee.nodes.cgroups import directory_in

SYSTEMD = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
CONTAINER = "31 23 0:28 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
ODD = "31 23 0:28 / /mnt/my\\040groups rw - cgroup2 cgroup2 rw\n"
OWN = "4:memory:/workers/a\n1:cpu,cpuacct:/\n0::/system.slice/rbee-hive.service\n"


@pytest.mark.parametrize(
    ("cgroup", "mounts", "controller", "found"),
    [
        (OWN, SYSTEMD, "", "/sys/fs/cgroup/system.slice/rbee-hive.service"),
        (OWN, HYBRID, "", "/sys/fs/cgroup/unified/system.slice/rbee-hive.service"),
        (OWN, HYBRID, "memory", "/sys/fs/cgroup/memory/workers/a"),
        (OWN, HYBRID, "cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
        (OWN, SYSTEMD, "memory", None),
        (OWN, CONTAINER, "", None),
        ("0::/docker/abc/worker\n", CONTAINER, "", "/sys/fs/cgroup/worker"),
        ("0::/docker/abcd\n", CONTAINER, "", None),
        ("0::/\n", SYSTEMD, "", "/sys/fs/cgroup"),
        ("0::/../outside\n", SYSTEMD, "", None),
        ("0::/a:b\n", ODD, "", "/mnt/my groups/a:b"),
        ("", SYSTEMD, "", None),
    ],
)
def test_a_group_is_found_in_the_file_system(cgroup, mounts, controller, found):
    assert directory_in(cgroup, mounts, controller) == (found and Path(found))

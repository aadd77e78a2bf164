"""How many descriptors this process may have, and whether there is one left."""

import errno
import os
import resource
import sys
from typing import Final

NONE_LEFT: Final = (errno.EMFILE, errno.ENFILE)
"""Of this process, and of the whole machine."""


def limit() -> int:
    """The soft limit of this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def can_open() -> bool:
    """Whether there is one left, so that a connection could be accepted now."""
    try:
        os.close(os.open("/", os.O_RDONLY))
    except OSError as error:
        return error.errno not in NONE_LEFT
    return True

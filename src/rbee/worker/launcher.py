"""Becomes the engine: ``launcher.py KEEPER_PID LEASE -- ARGV...``, run by its file, standard library only.

Linux (LEASE is '-'): the kernel kills the engine when the keeper's main thread dies. The parent is checked after that
is arranged, for a keeper that died before would never be noticed. Elsewhere LEASE is the reading end of a pipe that the
keeper holds open: its end of file means that the keeper is gone, and this process, which then stays, kills the engine.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
NOT_STARTED = 127
"""Exit status of what could not be executed, as in a shell."""


def main() -> None:
    keeper_pid, lease, argv = int(sys.argv[1]), sys.argv[2], sys.argv[4:]
    if lease == "-":
        _die_with_parent()
        if os.getppid() != keeper_pid:
            sys.exit("the keeper died before its engine was started")
        _become(argv)
    else:
        _guard(int(lease), argv)


def _die_with_parent() -> None:
    import ctypes  # noqa: PLC0415 - not needed, and not the same, outside Linux

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"cannot set the parent-death signal: {os.strerror(ctypes.get_errno())}")


def _become(argv: list[str]) -> None:
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        text = f"error: cannot start the engine '{argv[0]}': {error.strerror}\n"
        try:
            os.write(2, text.encode(errors="replace"))
        finally:  # a full disk below the log must not change the exit status
            os._exit(NOT_STARTED)


def _guard(lease: int, argv: list[str]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until there is somebody to pass them on to
    engine = os.fork()
    if engine == 0:
        os.close(lease)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        _become(argv)
    watcher = os.fork()
    if watcher == 0:  # with the stop signals still blocked
        os.read(lease, 1)
        os.kill(engine, signal.SIGKILL)
        os._exit(0)
    os.close(lease)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda received, _: os.kill(engine, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    _, status = os.waitpid(engine, 0)
    os.kill(watcher, signal.SIGKILL)
    os.waitpid(watcher, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:  # end as the engine did, so that the keeper sees the same
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()

import pytest

from rbee.core.exits import Exit, ExitReason, from_wait_status


@pytest.mark.parametrize(
    ("returncode", "reason", "how"),
    [
        (0, ExitReason.STOPPED, "exit code 0"),
        (3, ExitReason.CRASHED, "exit code 3"),
        (-9, ExitReason.CRASHED, "killed by SIGKILL"),
        (-250, ExitReason.CRASHED, "killed by signal 250"),
    ],
)
def test_a_wait_status_is_said_in_words(returncode, reason, how):
    exit_ = from_wait_status(returncode)
    assert (exit_.reason, exit_.how()) == (reason, how)


def test_an_adopted_process_that_left_nothing_ended_for_unknown_reasons():
    assert Exit(ExitReason.CRASHED).sentence() == "It ended (crashed, unknown)."
    assert Exit(ExitReason.CRASHED, code=1, message="no such file.").sentence() == (
        "It ended (crashed, exit code 1): no such file."
    )

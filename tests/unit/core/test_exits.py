from dataclasses import replace

import pytest

from rbee.core.exits import UNKNOWN, Exit, ExitReason, completed, from_wait_status, may_be_oom, with_oom_verdict


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


KEEPER_GAVE_UP = from_wait_status(1)
KILLED = from_wait_status(-9)


@pytest.mark.parametrize(
    ("exit_", "word", "reason", "how"),
    [
        (KEEPER_GAVE_UP, {"reason": "crashed", "engine_signal": 11}, "crashed", "killed by SIGSEGV"),
        (KEEPER_GAVE_UP, {"reason": "load_failed", "engine_exit_code": 3}, "crashed", "exit code 3"),
        (KEEPER_GAVE_UP, {"reason": "crashed", "engine_exit_code": 0}, "crashed", "exit code 0"),
        (KEEPER_GAVE_UP, {"reason": "load_failed"}, "crashed", "exit code 1"),
        (KILLED, {"reason": "crashed", "engine_exit_code": 3}, "crashed", "exit code 3"),
        # An engine that was ended on purpose ended by a signal, too.
        (from_wait_status(0), {"reason": "stopped", "engine_signal": 15}, "stopped", "exit code 0"),
        (KILLED, {"reason": "stopped"}, "stopped", "killed by SIGKILL"),
        (UNKNOWN, {"reason": "stopped", "exit_code": 0}, "stopped", "exit code 0"),
        (UNKNOWN, {"reason": "superseded", "exit_code": 0}, "stopped", "exit code 0"),
        (UNKNOWN, {"reason": "orphaned", "exit_code": 1}, "stale", "exit code 1"),
        (UNKNOWN, {"reason": "crashed", "exit_code": 1, "engine_signal": 9}, "crashed", "killed by SIGKILL"),
        (UNKNOWN, {"reason": 7, "exit_code": "x", "engine_signal": None}, "crashed", "unknown"),
    ],
)
def test_what_the_keeper_left_says_how_its_engine_ended(exit_, word, reason, how):
    told = completed(exit_, {"message": "why", **word})
    assert (told.reason, told.how(), told.message) == (reason, how, "why")


@pytest.mark.parametrize(
    ("verdict", "reason", "how"),
    [
        (True, "oom", "killed by SIGKILL (the kernel's out-of-memory killer)"),
        (None, "crashed", "killed by SIGKILL (the kernel's out-of-memory killer?)"),
        (False, "crashed", "killed by SIGKILL"),
    ],
)
def test_a_kill_that_nobody_asked_for_says_whether_it_was_for_want_of_memory(verdict, reason, how):
    assert may_be_oom(KILLED)
    exit_ = with_oom_verdict(KILLED, verdict)
    assert (exit_.reason, exit_.how()) == (reason, how)
    # Whoever knows that it was the hive gives its own reason, and the guess is gone.
    assert replace(exit_, reason=ExitReason.STALE).how() == "killed by SIGKILL"


def test_only_a_kill_without_a_known_cause_can_be_for_want_of_memory():
    assert not may_be_oom(UNKNOWN)
    assert not may_be_oom(from_wait_status(-15))
    assert not may_be_oom(Exit(ExitReason.STOPPED, signal_number=9))

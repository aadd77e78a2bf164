from rbee.core.environment import inherited


def test_what_the_service_manager_gave_the_hive_reaches_no_worker():
    """With NOTIFY_SOCKET a worker could speak for the hive, with LISTEN_FDS take its sockets for its own."""
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    names += ("MAINPID", "INVOCATION_ID", "JOURNAL_STREAM", "STATE_DIRECTORY", "MANAGERPID", "CREDENTIALS_DIRECTORY")
    assert inherited({**dict.fromkeys(names, "x"), "PATH": "/usr/bin"}) == {"PATH": "/usr/bin"}


def test_no_secret_and_none_of_our_own_settings_reach_a_worker():
    given = {"RBEE_API_TOKEN": "t", "HF_TOKEN": "t", "VLLM_API_KEY": "t", "RBEE_HIVE__SERVER__PORT": "1"}
    assert inherited({**given, "VLLM_USE_V1": "1", "HOME": "/root"}) == {"VLLM_USE_V1": "1", "HOME": "/root"}

"""The page as Prometheus' own tool reads it."""

import subprocess

from tests.tools import need_tool

EXCUSED = ("rbee_hive_workers_total", "rbee_hive_workers_restart_count")
"""DESIGN section 8 keeps these two names from the original."""


def test_promtool_has_nothing_to_say_but_the_two_names_that_are_excused(hive):
    promtool = need_tool("promtool")
    hive.ready()
    hive.post("/v1/chat/completions", {"model": "synthetic:x", "messages": [], "max_tokens": 3})
    answer = hive.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    check = subprocess.run([promtool, "check", "metrics"], input=answer.body, capture_output=True, check=False)
    said = (check.stdout + check.stderr).decode().splitlines()
    assert [line for line in said if not line.startswith(EXCUSED)] == []


def test_a_scrape_wakes_nobody(hive):
    for _ in range(3):
        assert hive.get("/metrics").status == 200
    assert hive.get("/v1/workers").json == {"workers": []}

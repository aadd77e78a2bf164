"""What `rbee fits`, `rbee resources` and a refused `rbee spawn` print."""

import json

import pytest

from rbee.cli.workers import processor

MIB, GIB = 2**20, 2**30
HERE = "/v1/admission"


def check(**changes):
    fields = {
        "resource": "ram",
        "device": None,
        "where": "",
        "need_bytes": 5 * GIB,
        "free_bytes": 8 * GIB,
        "reserved_bytes": 2 * GIB,
        "margin_bytes": 2 * GIB,
        "left_bytes": 6 * GIB,
        "limit_bytes": 8 * GIB,
        "short_bytes": GIB,
        "fits": False,
        "setting": "limits.min_free_memory",
        "holders": [],
    }
    return {**fields, **changes}


def verdict(**changes):
    fields = {
        "fits": False,
        "message": "m does not fit. It would fit with a context of 512 tokens (ctx_size).",
        "resources": [
            check(),
            check(resource="vram", device=0, where="L4 (cuda:0)", limit_bytes=None, short_bytes=0, fits=True),
            check(need_bytes=9 * GIB, setting="limits.max_worker_memory"),
            check(resource="disk", where="/state", short_bytes=0, fits=True),
        ],
        "advice": [{"text": "It would fit with a context of 512 tokens (ctx_size)."}],
    }
    return {**fields, **changes}


RESOURCES = {
    "memory": {
        "total_bytes": 16 * GIB,
        "group_limit_bytes": 12 * GIB,
        "group_left_bytes": 9 * GIB,
        "free_bytes": 9 * GIB,
        "reserved_bytes": GIB,
        "margin_bytes": 2 * GIB,
        "left_bytes": 8 * GIB,
    },
    "devices": [
        {
            "backend": "cuda",
            "index": 0,
            "name": "L4",
            "total_bytes": 24 * GIB,
            "free_bytes": 20 * GIB,
            "reserved_bytes": 0,
            "margin_bytes": GIB,
            "left_bytes": 20 * GIB,
            "is_live": True,
        }
    ],
    "disks": {
        name: {"path": f"/{name}", "total_bytes": 100 * GIB, "free_bytes": 50 * GIB, "margin_bytes": 10 * GIB}
        for name in ("models", "state")
    },
    "workers": [
        {
            "worker_id": "w-1",
            "model_ref": "synthetic:x",
            "state": "idle",
            "backend": "cuda",
            "devices": [0, 1],
            "claimed": {"ram_bytes": GIB, "vram_bytes": [2 * GIB, 2 * GIB]},
            "reserved": {"ram_bytes": GIB, "vram_bytes": [0, 0]},
            "measured": {"rss_bytes": None, "vram_bytes": None},
        }
    ],
    "engines": [{"engine": "llama-cpp", "devices": [], "problem": ""}],
}


def cells(text):
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def test_fits_prints_each_resource_and_what_would_help_and_ends_with_one(rbee, hive):
    hive.routes["POST", HERE] = (200, verdict())
    result = rbee("fits", "example")
    assert result.exit_code == 1
    assert cells(result.stdout) == [
        ["RESOURCE", "NEED", "FREE", "RESERVED", "MARGIN", "LEFT", "FITS"],
        ["memory", "5.0 GiB", "8.0 GiB", "2.0 GiB", "2.0 GiB", "6.0 GiB", "no, 1.0 GiB missing"],
        ["L4 (cuda:0)", "5.0 GiB", "8.0 GiB", "2.0 GiB", "2.0 GiB", "6.0 GiB", "yes"],
        [
            "memory",
            "9.0 GiB",
            "8.0 GiB",
            "2.0 GiB",
            "2.0 GiB",
            "6.0 GiB",
            "no, limits.max_worker_memory allows 8.0 GiB",
        ],
        ["disk /state", "5.0 GiB", "8.0 GiB", "2.0 GiB", "2.0 GiB", "6.0 GiB", "yes"],
        ["m does not fit. It would fit with a context of 512 tokens (ctx_size)."],
    ]


def test_fits_says_why_where_nothing_would_help(rbee, hive):
    hive.routes["POST", HERE] = (200, verdict(message="m does not fit. Memory: 1.00 GiB missing.", advice=[]))
    assert rbee("fits", "example").stdout.splitlines()[-1] == "m does not fit. Memory: 1.00 GiB missing."


@pytest.mark.parametrize(
    ("command", "method", "path"), [("fits x", "POST", HERE), ("resources", "GET", "/v1/resources")]
)
def test_a_hive_that_does_not_know_the_question_yet_is_called_older(rbee, hive, refusal, command, method, path):
    hive.routes[method, path] = (404, refusal("route_not_found", "There is nothing there."))
    result = rbee(*command.split())
    assert result.exit_code == 1
    assert "is older than this command line" in result.stderr


def test_fits_ends_with_zero_and_says_where_it_would_run(rbee, hive):
    hive.routes["POST", HERE] = (200, verdict(fits=True, resources=[], advice=[], message="m fits on the CPU."))
    result = rbee("fits", "example")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "m fits on the CPU.")


def test_fits_asks_with_the_options_of_a_spawn_and_the_size_of_a_download(rbee, hive):
    hive.routes["POST", HERE] = (200, verdict())
    rbee("fits", "example", "--ctx-size", "512", "--download", "2GiB", "--", "--no-mmap")
    assert hive.bodies(HERE) == [
        {"model_ref": "example", "engine_args": ["--no-mmap"], "ctx_size": 512, "download_bytes": 2 * GIB}
    ]


def test_fits_json_is_the_verdict_and_still_ends_with_one(rbee, hive):
    hive.routes["POST", HERE] = (200, verdict())
    result = rbee("fits", "example", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, verdict())


def refused(refusal):
    body = refusal("insufficient_resources", "m does not fit.")
    body["error"]["details"] = verdict()
    return 507, body


def test_a_refused_spawn_prints_one_line_and_the_table_on_standard_error(rbee, hive, refusal):
    hive.routes["POST", "/v1/workers/spawn"] = refused(refusal)
    result = rbee("spawn", "example")
    assert (result.exit_code, result.stdout) == (1, "")
    first, header, *_ = result.stderr.splitlines()
    assert first == "Error: m does not fit."
    assert header.startswith("RESOURCE")
    assert "no, 1.0 GiB missing" in result.stderr


def test_a_refused_spawn_gives_the_verdict_as_json(rbee, hive, refusal):
    hive.routes["POST", "/v1/workers/spawn"] = refused(refusal)
    result = rbee("spawn", "example", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, verdict())
    assert result.stderr == "Error: m does not fit.\n"


def test_resources_prints_the_machine_then_who_has_what(rbee, hive):
    hive.routes["GET", "/v1/resources"] = (200, RESOURCES)
    result = rbee("resources")
    assert result.exit_code == 0
    assert cells(result.stdout) == [
        ["RESOURCE", "TOTAL", "FREE", "RESERVED", "MARGIN", "LEFT"],
        ["memory", "16.0 GiB", "9.0 GiB", "1.0 GiB", "2.0 GiB", "8.0 GiB"],
        ["memory of its cgroup", "12.0 GiB", "9.0 GiB", "-", "-", "-"],
        ["cuda:0 L4", "24.0 GiB", "20.0 GiB", "0 MiB", "1.0 GiB", "20.0 GiB"],
        ["disk /models (models)", "100.0 GiB", "50.0 GiB", "-", "10.0 GiB", "-"],
        ["disk /state (state)", "100.0 GiB", "50.0 GiB", "-", "10.0 GiB", "-"],
        [],
        ["WORKER", "MODEL", "STATE", "ON", "CLAIMED", "RESERVED", "MEASURED"],
        ["w-1", "x", "idle", "cuda 0,1", "1.0 GiB + 4.0 GiB on devices", "1.0 GiB + 0 MiB on devices", "-"],
        [],
        ["engine llama-cpp: cpu"],
    ]


def test_resources_json_is_what_the_hive_said(rbee, hive):
    hive.routes["GET", "/v1/resources"] = (200, RESOURCES)
    assert json.loads(rbee("resources", "--json").stdout) == RESOURCES


CLAIM = {"ram_weights_bytes": 48 * MIB, "vram_weights_bytes": [30 * MIB, 22 * MIB]}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"backend": "cpu", "devices": []}, "100% CPU"),
        ({"backend": "cuda", "devices": [1], "claim": None}, "100% GPU 1"),
        ({"backend": "cuda", "devices": [0, 1], "claim": CLAIM, "engine_args": []}, "100% GPU 0,1"),
        (
            {"backend": "cuda", "devices": [0, 1], "claim": CLAIM, "engine_args": ["--n-gpu-layers", "9"]},
            "48%/52% CPU/GPU 0,1",
        ),
        ({"backend": "cuda"}, "cuda"),
        ({}, "?"),
    ],
)
def test_the_processor_is_what_really_computes(fields, text):
    assert processor(fields) == text

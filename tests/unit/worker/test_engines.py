import json
from typing import Any

import pytest

from rbee.core.engine_args import parse
from rbee.core.environment import device_variables, inherited
from rbee.worker.engines.base import Plan
from rbee.worker.engines.command import Command, fill
from rbee.worker.engines.dialect import as_telemetry, lists_model, read_metrics, slots_idle
from rbee.worker.engines.llama_cpp import LlamaCpp, parameters


def plan(
    *arguments: str, backend: str = "cpu", ctx_size: int = 4096, slots: int = 4, split: tuple[float, ...] = ()
) -> Plan:
    return Plan(
        worker_id="w1",
        model="/m.gguf",
        names=("small", "hf:a/b", "w1"),
        backend=backend,
        device_count=len(split) or 1,
        split=split,
        host="127.0.0.1",
        slots=slots,
        ctx_size=ctx_size,
        prompt_cache_bytes=512 << 20,
        engine_args=parse("llama-cpp", arguments),
        python="/opt/python",
        template=("serve", "{model}", "--port={port}"),
    )


def test_each_slot_gets_the_context_of_one_request() -> None:
    found = parameters(plan(ctx_size=2048, slots=3))
    assert (found["n_ctx"], found["n_parallel"]) == (6144, 3)
    assert (found["n_batch"], found["n_ubatch"], found["cache_ram_mib"]) == (512, 512, 512)


def test_what_takes_memory_is_never_left_to_the_engines_defaults() -> None:
    found = parameters(plan())
    assert (found["n_ctx_checkpoints"], found["kv_unified"], found["swa_full"]) == (2, False, False)


@pytest.mark.parametrize(
    ("backend", "arguments", "layers"),
    [("cpu", (), 0), ("cuda", (), 9999), ("cuda", ("--n-gpu-layers", "7"), 7)],
)
def test_layers_go_where_the_backend_says(backend: str, arguments: tuple[str, ...], layers: int) -> None:
    assert parameters(plan(*arguments, backend=backend))["n_gpu_layers"] == layers


def test_an_embedding_model_takes_a_whole_context_in_one_batch() -> None:
    assert parameters(plan("--embedding"))["n_ubatch"] == 4096
    assert parameters(plan("--reranking", ctx_size=100_000))["n_ubatch"] == 8192
    assert parameters(plan("--embedding", ctx_size=256))["n_ubatch"] == 512


def test_the_key_is_in_the_environment_alone() -> None:
    for engine in (LlamaCpp(plan()), Command(plan())):
        launch = engine.launch(8081, "engine-key")
        assert "engine-key" not in " ".join(launch.argv)
        assert launch.environment["RBEE_ENGINE_KEY"] == "engine-key"
    assert "RBEE_ENGINE_KEY" not in LlamaCpp(plan()).launch(8081, "").environment


def test_the_engine_is_told_all_names_of_its_model() -> None:
    launch = LlamaCpp(plan()).launch(8081, "")
    assert json.loads(launch.environment["RBEE_ENGINE_CONFIG"])["names"] == ["small", "hf:a/b", "w1"]
    assert launch.argv[0] == "/opt/python"


def test_a_template_is_filled_once_and_keeps_other_braces() -> None:
    values = {"port": "1", "model": "{port}"}
    template = ["x", "{model}", "--port={port}", '{"a": 1}', "{names}", "--alias={names}"]
    assert fill(template, values, ["a", "b"]) == ["x", "{port}", "--port=1", '{"a": 1}', "a", "b", "--alias=a,b"]


def test_metrics_of_all_dialects_are_understood() -> None:
    llama = "# HELP x y\nllamacpp:prompt_tokens_total 31\nllamacpp:predicted_tokens_seconds 99.5\nother 3\n"
    assert as_telemetry(read_metrics(llama)) == {"prompt_tokens_total": 31, "tokens_per_second": 99.5}
    vllm = (
        'vllm:num_requests_running{engine="0",model_name="a b"} 2.0\n'
        'vllm:request_success_total{finished_reason="stop"} 3.0\n'
        'vllm:request_success_total{finished_reason="length"} 4\n'
        "vllm:num_requests_waiting{} 1.0\n"
    )
    assert read_metrics(vllm) == {"slots_busy": 2, "requests_total": 7, "requests_waiting": 1}
    assert as_telemetry(read_metrics(vllm)) == {"slots_busy": 2, "requests_total": 7}


@pytest.mark.parametrize("text", ["", "llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_total x", "{} {} {"])
def test_metrics_that_are_none_are_no_error(text: str) -> None:
    assert read_metrics(text) == {}


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1"])
def test_values_that_no_counter_has_are_left_out(value: str) -> None:
    assert read_metrics(f"llamacpp:requests_processing {value}") == {}


def test_slots_are_idle_only_when_all_say_so() -> None:
    idle, busy = {"is_processing": False}, {"is_processing": True}
    assert slots_idle([idle, idle])
    assert not slots_idle([idle, busy])
    assert not slots_idle([idle, {}])
    assert not slots_idle(None)
    assert not slots_idle({"error": "x"})


def test_a_model_is_found_by_id_and_by_alias() -> None:
    page = {"data": [{"id": "small", "aliases": ["small", "w1"]}]}
    assert lists_model(page, "small")
    assert lists_model(page, "w1")
    assert not lists_model(page, "w2")
    assert not any(lists_model(junk, "w1") for junk in (None, [], {}, {"data": None}, {"data": ["w1"]}))


def test_an_engine_sees_switches_and_paths_but_no_secret() -> None:
    environment = {
        "PATH": "/bin",
        "HOME": "/root",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "GGML_CUDA_GRAPH_OPT": "1",
        "VLLM_API_KEY": "secret",
        "HF_TOKEN": "secret",
        "RBEE_WORKER_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "PYTHONPATH": "/x",
        "LD_PRELOAD": "/x.so",
    }
    assert sorted(inherited(environment)) == ["CUDA_VISIBLE_DEVICES", "GGML_CUDA_GRAPH_OPT", "HOME", "LC_ALL", "PATH"]


def test_the_device_is_set_unless_it_was_chosen_already() -> None:
    assert device_variables("cuda", [1], {}) == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert device_variables("cuda", [1], {"CUDA_VISIBLE_DEVICES": "GPU-x"}) == {}
    assert device_variables("rocm", [0, 2], {}) == {"HIP_VISIBLE_DEVICES": "0,2"}
    assert device_variables("cpu", [0], {}) == {}


def config_of(plan: Plan) -> dict[str, Any]:
    return json.loads(LlamaCpp(plan).launch(8081, "").environment["RBEE_ENGINE_CONFIG"])


def test_the_engine_is_told_how_its_devices_share_the_model() -> None:
    config = config_of(plan(backend="cuda", split=(0.25, 0.75)))
    assert (config["gpus"], config["split"]) == (2, [0.25, 0.75])


def test_no_device_is_required_where_no_layer_goes_to_one() -> None:
    assert config_of(plan())["gpus"] == 0
    assert config_of(plan("--n-gpu-layers", "0", backend="cuda"))["gpus"] == 0


def test_a_build_for_gpus_opens_none_for_a_worker_of_the_processor() -> None:
    for_processor = LlamaCpp(plan()).launch(8081, "").environment
    assert (for_processor["CUDA_VISIBLE_DEVICES"], for_processor["HIP_VISIBLE_DEVICES"]) == ("", "-1")
    assert "CUDA_VISIBLE_DEVICES" not in LlamaCpp(plan(backend="cuda")).launch(8081, "").environment
    assert "CUDA_VISIBLE_DEVICES" not in Command(plan()).launch(8081, "").environment


def test_a_command_can_be_told_how_many_devices_it_has() -> None:
    template = ("vllm", "serve", "{model}", "--tensor-parallel-size={device_count}")
    launch = Command(plan(backend="cuda", split=(0.5, 0.5))._replace(template=template)).launch(8081, "")
    assert launch.argv[-1] == "--tensor-parallel-size=2"

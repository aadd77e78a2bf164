import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rbee.config.sections import is_loopback
from rbee.config.settings import Settings, load
from rbee.core.errors import SettingsError

SHA = "a" * 64


@pytest.fixture
def toml(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "rbee-hive.toml"
        file.write_text(text)
        return file

    return write


def refused(flags=None, environ=None, file=None) -> str:
    with pytest.raises(SettingsError) as caught:
        load(flags or {}, environ or {}, file)
    return caught.value.message


def test_nothing_given_leaves_the_defaults_of_the_design():
    loaded = load({}, {}, None)
    settings = loaded.settings
    assert settings == Settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 9200)
    assert (settings.heartbeat.interval, settings.heartbeat.stale_after) == (30, 60)
    assert settings.limits.max_worker_memory == 8 * 2**30
    assert settings.lifecycle.leave_timeout == 24 * 3600
    assert settings.workers.ports == range(8081, 9001)
    assert settings.workers.allow_external
    assert settings.models.allowed_roots == (settings.models.directory, Path.home())
    assert set(loaded.origins.values()) == {"default"}


def test_flag_beats_environment_beats_file_beats_default(toml):
    file = toml("[server]\nport = 1\nhost = 'localhost'\n[workers]\nslots = 2\n")
    environ = {"RBEE_HIVE__SERVER__PORT": "2", "RBEE_HIVE__SERVER__HOST": "127.0.0.2"}
    loaded = load({"server.port": "3"}, environ, file)
    assert (loaded.settings.server.port, loaded.settings.server.host) == (3, "127.0.0.2")
    assert loaded.settings.workers.slots == 2
    assert loaded.origins["server.port"] == "flag --port"
    assert loaded.origins["server.host"] == "environment RBEE_HIVE__SERVER__HOST"
    assert loaded.origins["workers.slots"] == f"file {file}"
    assert loaded.origins["workers.engine"] == "default"


@given(
    given_by=st.sets(st.sampled_from(["file", "environment", "flag"])),
    ports=st.tuples(*[st.integers(1, 65535)] * 3),
)
def test_whoever_is_highest_wins(given_by, ports, tmp_path_factory):
    file = None
    if "file" in given_by:
        file = tmp_path_factory.getbasetemp() / "any.toml"
        file.write_text(f"[server]\nport = {ports[0]}\n")
    environ = {"RBEE_HIVE__SERVER__PORT": str(ports[1])} if "environment" in given_by else {}
    flags = {"server.port": str(ports[2])} if "flag" in given_by else {}
    loaded = load(flags, environ, file)
    winner = next((who for who in ("flag", "environment", "file") if who in given_by), "default")
    wanted = {"flag": ports[2], "environment": ports[1], "file": ports[0], "default": 9200}
    assert loaded.settings.server.port == wanted[winner]
    assert loaded.origins["server.port"].split()[0] == winner


def test_variables_that_kubernetes_injects_for_a_service_are_ignored():
    environ = {"RBEE_HIVE_PORT": "tcp://10.0.0.1:9200", "RBEE_HIVE_SERVICE_HOST": "10.0.0.1", "RBEE_OTHER": "x"}
    assert load({}, environ, None).settings == Settings()


@pytest.mark.parametrize(
    ("flags", "environ", "key", "origin", "nearest"),
    [
        ({"server.prot": "1"}, {}, "server.prot", "flag --set server.prot", "server.port"),
        ({}, {"RBEE_HIVE__SERVER__PROT": "1"}, "server.prot", "environment RBEE_HIVE__SERVER__PROT", "server.port"),
        ({}, {"RBEE_HIVE__SEVER__PORT": "1"}, "sever.port", "RBEE_HIVE__SEVER__PORT", "server.port"),
        ({}, {"RBEE_HIVE__SERVER": "1"}, "server", "RBEE_HIVE__SERVER", "server"),
        (
            {},
            {"RBEE_HIVE__MODEL__CHAT__SLOT": "1"},
            "model.chat.slot",
            "RBEE_HIVE__MODEL__CHAT__SLOT",
            "model.chat.slots",
        ),
        ({}, {"RBEE_HIVE__": "1"}, '""', "environment RBEE_HIVE__", "The sections are"),
    ],
)
def test_unknown_key_is_named_with_its_origin_and_the_nearest_one(flags, environ, key, origin, nearest):
    message = refused(flags, environ)
    assert message.startswith(f"{key} (")
    assert origin in message
    assert nearest in message


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[servr]\nport = 1", "servr", "server"),
        ("[server]\nports = 1", "server.ports", "server.port"),
        ("[model.'hf:a/b']\nalia = 'x'", 'model."hf:a/b".alia', 'model."hf:a/b".alias'),
    ],
)
def test_unknown_key_in_the_file_is_named(toml, text, key, nearest):
    file = toml(text)
    message = refused(file=file)
    assert f"{key} (file {file}) is not a setting" in message
    assert f"Did you mean {nearest}?" in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[server]\nport = '9200'", "server.port = '9200'"),
        ("[server]\nport = true", "server.port = True"),
        ("[server]\nport = 70000", "server.port = 70000"),
        ("[auth]\nmetrics_auth = 'yes'", "auth.metrics_auth"),
        ("[server]\nallowed_hosts = 'a'", "server.allowed_hosts"),
        ("[server]\nallowed_hosts = [1]", "server.allowed_hosts"),
        ("[limits]\nmin_free_disk = '10 gigs'", "limits.min_free_disk"),
        ("[heartbeat]\ninterval = 'soon'", "heartbeat.interval"),
        ("[heartbeat]\ninterval = 0", "heartbeat.interval"),
        ("[log]\nlevel = 'loud'", "log.level"),
        ("[restart]\njitter = 2.0", "restart.jitter"),
        ("[restart]\nmax_delay = 0.5", "restart.max_delay"),
        ("[keys.ci]\nsha256 = 'abc'", "keys.ci.sha256"),
        ("[keys.ci]\nrole = 'admin'", "keys.ci.sha256"),
        ("[keys.ci]\nmax_in_flight = -1", "keys.ci.max_in_flight = -1"),
        ("[keys.ci]\nrequests_per_minute = 1.5", "keys.ci.requests_per_minute = 1.5"),
        ("[model.chat]\nref = 'nonsense'", "model.chat.ref"),
        ("[model.chat]\nref = 'example'\nalias = 'hf:a/b'", "model.chat.alias"),
        ("[server]\ntls_cert = '/c'", "server.tls_key"),
        ("server = 1", "server"),
        ("[model]\nchat = 1", "model.chat"),
        ("[engine.x]\nhealth_path = 'health'", "engine.x.health_path"),
    ],
)
def test_wrong_value_is_refused_by_its_key_and_file(toml, text, named):
    file = toml(text)
    message = refused(file=file)
    assert named in message
    assert named == "server.tls_key" or f"(file {file})" in message or "sha256 is not set" in message


@pytest.mark.parametrize(
    "origin", ["example.com", "https://a.example/", "https://a.example/path", "https://*.example", "https://", ""]
)
def test_origin_that_no_browser_sends_is_refused(toml, origin):
    message = refused(file=toml(f"[gateway]\ncors_origins = ['https://b.example', '{origin}']"))
    assert f"{origin!r} is no origin" in message
    assert "https://app.example" in message


@pytest.mark.parametrize(
    "origin", ["*", "null", "https://a.example", "http://LOCALHOST:3000", "http://[::1]:8080", "chrome-extension://abc"]
)
def test_origin_that_a_browser_sends_is_taken(origin):
    assert load({"gateway.cors_origins": origin}, {}, None).settings.gateway.cors_origins == (origin,)


def test_bodies_that_could_never_be_held_are_refused():
    assert "gateway.max_body (2048 bytes)" in refused({"gateway.max_body": "2KiB", "gateway.buffer_limit": "1KiB"})
    assert "gateway.buffer_limit (default)" in refused({"gateway.max_body": "1GiB"})
    load({"gateway.max_body": "1GiB", "gateway.buffer_limit": "1GiB"}, {}, None)


def test_digest_is_taken_in_capitals_too_and_a_wrong_one_is_told_how_to_make_it(toml):
    assert load({}, {}, toml(f"[keys.a]\nsha256 = '{SHA.upper()}'")).settings.keys["a"].sha256 == SHA
    assert "sha256sum" in refused(file=toml("[keys.a]\nsha256 = 'abc'"))


def test_one_key_with_two_names_is_refused(toml):
    file = toml(f"[keys.ci]\nsha256 = '{SHA}'\nrole = 'admin'\n[keys.web]\nsha256 = '{SHA}'\n")
    assert "keys.ci.sha256 and keys.web.sha256 are the same key" in refused(file=file)
    token = "a-token-of-some-length"
    file = toml(f"[keys.web]\nsha256 = '{sha256(token.encode()).hexdigest()}'\n")
    message = refused(environ={"RBEE_API_TOKEN": token}, file=file)
    assert "auth.api_token and keys.web.sha256 are the same key" in message
    assert token not in message


def test_two_wrong_values_are_named_at_once():
    message = refused({"server.port": "x", "workers.slots": "0"})
    assert "server.port = 'x' (flag --port)" in message
    assert "workers.slots = 0 (flag --set workers.slots)" in message


@pytest.mark.parametrize("text", ["nonsense", "8081", "0-5", "9-8", "1-70000", "a-b", "8081-", "1-2-3", "-1-5"])
def test_port_range_that_is_none_is_refused(text):
    assert "workers.port_range" in refused({"workers.port_range": text})


def test_port_range_is_read():
    assert load({"workers.port_range": "9000 - 9000"}, {}, None).settings.workers.ports == range(9000, 9001)


def test_stale_time_below_two_intervals_is_refused_and_says_which_would_do():
    assert "heartbeat.stale_after" in (message := refused({"heartbeat.interval": "40s"}))
    assert "80s" in message
    assert (
        load({"heartbeat.interval": "1s", "heartbeat.stale_after": "2s"}, {}, None).settings.heartbeat.stale_after == 2
    )


@pytest.mark.parametrize("text", ["a, b", "a,b,", '["a", "b"]'])
def test_list_in_a_variable_is_comma_separated_or_json(text):
    environ = {"RBEE_HIVE__SERVER__ALLOWED_HOSTS": text}
    assert load({}, environ, None).settings.server.allowed_hosts == ("a", "b")


def test_list_that_is_broken_json_is_refused():
    assert "server.allowed_hosts" in refused(environ={"RBEE_HIVE__SERVER__ALLOWED_HOSTS": "[a"})


@pytest.mark.parametrize(("text", "value"), [("true", True), ("ON", True), ("0", False), ("no", False)])
def test_yes_and_no_in_a_variable_are_read(text, value):
    assert load({}, {"RBEE_HIVE__AUTH__METRICS_AUTH": text}, None).settings.auth.metrics_auth is value


def test_empty_variable_unsets_what_may_be_unset(toml):
    file = toml("[server]\ntls_cert = '/c'\ntls_key = '/k'\n")
    environ = {"RBEE_HIVE__SERVER__TLS_CERT": "", "RBEE_HIVE__SERVER__TLS_KEY": ""}
    assert load({}, environ, file).settings.server.tls_key is None


def test_named_tables_are_read_from_every_layer(toml):
    file = toml(
        f"""
        [keys.ci]
        sha256 = "{SHA}"
        requests_per_minute = 60
        [engine.vllm]
        command = "vllm serve '{{model}}' --port {{port}}"
        [engine.list]
        command = ["a", "b c"]
        [model."hf:org/repo"]
        idle_timeout = "5m"
        """
    )
    environ = {"RBEE_HIVE__ENGINE__OTHER__COMMAND": "serve --a, b"}
    settings = load({"model.qwen2.5.ref": "example", "model.qwen2.5.slots": "2"}, environ, file).settings
    assert settings.keys["ci"].role == "client"
    assert settings.engine["vllm"].command == ("vllm", "serve", "{model}", "--port", "{port}")
    assert settings.engine["list"].command == ("a", "b c")
    assert settings.engine["other"].command == ("serve", "--a,", "b")
    assert settings.model["hf:org/repo"].ref == "hf:org/repo"
    assert settings.model["hf:org/repo"].idle_timeout == 300
    assert settings.model["qwen2.5"].slots == 2


def test_model_directory_follows_the_state_directory(tmp_path):
    models = load({"server.state_dir": str(tmp_path)}, {}, None).settings.models
    assert models.directory == tmp_path / "models"
    assert models.allowed_roots[0] == tmp_path / "models"
    assert load({"models.directory": "/m", "server.state_dir": "/s"}, {}, None).settings.models.directory == Path("/m")


def test_relative_paths_are_absolute_at_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load({"server.state_dir": ".rbee"}, {}, None).settings.server.state_dir == tmp_path / ".rbee"


def test_external_workers_are_allowed_on_loopback_unless_somebody_says_otherwise():
    assert not load({"server.host": "0.0.0.0"}, {}, None).settings.workers.allow_external
    assert load({"server.host": "::1"}, {}, None).settings.workers.allow_external
    flags = {"server.host": "0.0.0.0", "workers.allow_external": "true"}
    assert load(flags, {}, None).settings.workers.allow_external


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *[(host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")],
        *[(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.org", "")],
    ],
)
def test_loopback_is_told_from_the_rest(host, loopback):
    assert is_loopback(host) is loopback


def test_file_that_is_missing_or_no_toml_is_refused_by_its_name(tmp_path, toml):
    assert str(tmp_path / "none.toml") in refused(file=tmp_path / "none.toml")
    assert "is not TOML" in refused(file=toml("[server"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert "UTF-8" in refused(file=binary)


def test_token_variable_sets_the_token():
    loaded = load({}, {"RBEE_API_TOKEN": "correct-horse-battery"}, None)
    assert loaded.settings.auth.api_token.get_secret_value() == "correct-horse-battery"
    assert loaded.origins["auth.api_token"] == "environment RBEE_API_TOKEN"
    assert load({}, {"RBEE_API_TOKEN": ""}, None).settings.auth.api_token is None


def test_token_on_the_command_line_is_refused():
    assert "RBEE_API_TOKEN" in (message := refused({"auth.api_token": "correct-horse-battery"}))
    assert "correct-horse" not in message


def test_secrets_show_in_no_representation_and_no_error(toml):
    loaded = load({}, {"RBEE_API_TOKEN": "correct-horse-battery"}, None)
    assert "correct-horse" not in repr(loaded) + str(loaded.settings) + loaded.settings.model_dump_json()
    assert "12345" not in refused(file=toml("[auth]\napi_token = 12345"))


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.write_text("correct-horse-battery\n")
    file.chmod(0o600)
    return file


def test_token_is_read_from_its_file_without_the_line_end(token_file):
    loaded = load({"auth.api_token_file": str(token_file)}, {}, None)
    assert loaded.settings.auth.api_token.get_secret_value() == "correct-horse-battery"
    assert loaded.origins["auth.api_token"] == f"file {token_file}"
    assert loaded.origins["auth.api_token_file"] == "flag --set auth.api_token_file"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666])
def test_token_file_that_others_can_read_is_refused_with_the_command_that_helps(token_file, mode):
    token_file.chmod(mode)
    assert f"chmod 600 {token_file}" in refused({"auth.api_token_file": str(token_file)})


def test_token_file_that_is_missing_or_empty_is_refused(token_file, tmp_path):
    assert "cannot be read" in refused({"auth.api_token_file": str(tmp_path / "none")})
    token_file.write_text("\n")
    assert "is empty" in refused({"auth.api_token_file": str(token_file)})


def test_token_and_token_file_together_are_refused(token_file):
    message = refused({"auth.api_token_file": str(token_file)}, {"RBEE_API_TOKEN": "x" * 20})
    assert "environment RBEE_API_TOKEN" in message
    assert "both set" in message


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        load({}, {}, None).settings.server.port = 1


@given(st.dictionaries(st.text(max_size=12), st.recursive(st.integers() | st.text() | st.none(), st.lists), max_size=3))
def test_any_file_is_read_or_refused_as_a_settings_error(tmp_path_factory, tables):
    file = tmp_path_factory.getbasetemp() / "fuzz.toml"
    lines = [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in tables.items()]
    file.write_text("[server]\n" + "\n".join(lines), encoding="utf-8", errors="replace")
    try:
        load({}, {}, file)
    except SettingsError:
        return

import json
import tomllib

from rbee.config.settings import load
from rbee.config.show import as_json, as_text

FLAGS = {"server.port": "9300", "model.a b.ref": "example", "model.a b.idle_timeout": "90s", "gateway.max_body": "8MiB"}
ENVIRON = {"RBEE_API_TOKEN": "correct-horse-battery", "RBEE_HIVE__SERVER__ALLOWED_HOSTS": "a,b"}


def test_each_value_stands_with_its_origin():
    lines = [" ".join(line.split()) for line in as_text(load(FLAGS, ENVIRON, None)).splitlines()]
    assert "port = 9300 # flag --port" in lines
    assert 'allowed_hosts = ["a", "b"] # environment RBEE_HIVE__SERVER__ALLOWED_HOSTS' in lines
    assert 'host = "127.0.0.1" # default' in lines
    assert '[model."a b"]' in lines
    assert 'max_body = "8MiB" # flag --set gateway.max_body' in lines


def test_what_is_shown_is_a_settings_file_that_means_the_same(tmp_path):
    shown = load(FLAGS, {}, None)
    file = tmp_path / "shown.toml"
    file.write_text(as_text(shown))
    assert load({}, {}, file).settings == shown.settings


def test_secrets_are_masked_in_both_forms():
    loaded = load(FLAGS, ENVIRON, None)
    assert "correct-horse" not in as_text(loaded) + as_json(loaded)
    assert "api_token" not in tomllib.loads(as_text(loaded))["auth"]
    assert json.loads(as_json(loaded))["auth.api_token"] == {
        "value": "********",
        "origin": "environment RBEE_API_TOKEN",
    }


def test_json_gives_bytes_and_seconds():
    rows = json.loads(as_json(load(FLAGS, {}, None)))
    assert rows["gateway.max_body"] == {"value": 8 * 2**20, "origin": "flag --set gateway.max_body"}
    assert rows['model."a b".idle_timeout']["value"] == 90
    assert rows["server.tls_cert"] == {"value": None, "origin": "default"}

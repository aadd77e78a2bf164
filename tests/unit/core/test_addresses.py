import pytest

from rbee.core.addresses import base_url, bracketed


@pytest.mark.parametrize(
    ("host", "written"), [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("::1", "[::1]")]
)
def test_an_ipv6_address_stands_in_brackets(host, written):
    assert bracketed(host) == written
    assert base_url(host, 9200) == f"http://{written}:9200"
    assert base_url(host, 9200, "https") == f"https://{written}:9200"

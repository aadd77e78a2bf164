import pytest

from rbee.gateway.head import RequestHead, parse_head


@pytest.fixture
def anyio_backend():
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def head_of():
    """Builds a parsed head: method, target, then header lines."""

    def build(*lines: str, method: str = "POST", target: str = "/v1/chat/completions") -> RequestHead:
        fields = [*lines] if any(line.lower().startswith("host:") for line in lines) else ["Host: localhost", *lines]
        raw = "".join(line + "\r\n" for line in [f"{method} {target} HTTP/1.1", *fields, ""])
        return parse_head(raw.encode("latin-1"))

    return build

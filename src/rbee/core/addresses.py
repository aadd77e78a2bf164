"""How an address is written in a URL, and how much may be sent to the one that is not for inference."""

from typing import Final

MAX_CONTROL_BODY_BYTES: Final = 256 * 1024
"""The largest body that any control call needs is a spawn with a chat template, 64 KiB. Checking one of 32 MiB, the
gateway's limit for inference, against a schema would hold the loop for seconds."""


def bracketed(host: str) -> str:
    """The host as it stands in a URL or a Host header: an IPv6 address in brackets (RFC 3986 section 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def base_url(host: str, port: int, scheme: str = "http") -> str:
    return f"{scheme}://{bracketed(host)}:{port}"

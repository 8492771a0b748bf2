"""The address that the page listens on, and who can reach it, known before all slow imports."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any

from dmtd_demo.errors import UserError


def is_loopback(host: str | None = None) -> bool:
    """Say whether only this machine can reach the page, so that its visitors are whoever started
    it."""
    if os.environ.get("SPACE_ID") or shared():
        return False
    try:
        return all(
            ipaddress.ip_address(str(found[4][0]).partition("%")[0]).is_loopback
            for found in socket.getaddrinfo(host_of(host).strip("[]"), None)
        )
    except (OSError, ValueError):
        return False


def shared() -> bool:
    """Say whether Gradio makes a public link without being asked."""
    return os.environ.get("GRADIO_SHARE", "").lower() in ("true", "1")


def check_address(host: str | None = None, port: int | None = None) -> None:
    """Raise UserError where the page could not listen.

    Gradio itself would try twenty ports in vain, and say so twenty times.
    """
    text = str(port or os.environ.get("GRADIO_SERVER_PORT") or 0)  # 0: any free one
    if not text.isdecimal() or int(text) > 65535:
        raise UserError(f"the port needs to be a whole number from 1 to 65535; got {text!r}")
    try:
        family, address = resolved(host, int(text))
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        where = f"port {text} of {host_of(host)}" if int(text) else f"the address {host_of(host)}"
        raise UserError(
            f"the page needs a free port to listen on; {where} gave: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from None


def resolved(host: str | None, port: int) -> tuple[socket.AddressFamily, Any]:
    """Return the family and the address to bind to. Raises OSError, UnicodeError."""
    found = socket.getaddrinfo(host_of(host).strip("[]"), port, type=socket.SOCK_STREAM)[0]
    return found[0], found[4]


def host_of(host: str | None) -> str:
    """Return the host that is given, or the one that a choice left open stands for."""
    return host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"


def bracketed(host: str | None) -> str | None:
    """Return a host as it stands in an address of the web: IPv6 in brackets."""
    host = host or os.environ.get("GRADIO_SERVER_NAME")
    return f"[{host.strip('[]')}]" if host and ":" in host else host

"""The proxies of the environment (http_proxy, https_proxy, all_proxy).

They are for others, never for this machine itself; where httpx cannot use them it is said in one
sentence.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from dmtd_demo.errors import UserError

# as no_proxy has them
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback_url(url: str) -> bool:
    """Say whether an address of the web names this machine by one of its own names.

    Raises ValueError.
    """
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@contextlib.contextmanager
def straight_to_loopback(asks_others: bool = False) -> Iterator[None]:
    """Let this process ask itself without the proxies of the environment, in a block.

    After it no process that this one starts asks this machine by them. asks_others: others are
    asked too in the block, by the proxies.
    """
    _tidy()
    given = [name.lower() for name in os.environ if name.lower().endswith("_proxy")]
    if not set(given) - {"no_proxy"}:
        yield
        return
    kept = os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(",")
    always = ",".join(dict.fromkeys([*filter(None, map(str.strip, kept)), *LOOPBACK]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = always if asks_others else "*"
    try:
        yield
    finally:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = always


@contextlib.contextmanager
def proxy_errors() -> Iterator[None]:
    """Say in words why clients of httpx cannot be made, in a block.

    Raises UserError where the environment names a proxy that they cannot use.
    """
    _tidy()
    try:
        yield
    except ImportError as error:
        if "socksio" not in str(error):
            raise
        raise UserError(
            "the environment names a SOCKS proxy (all_proxy), which needs the package socksio:"
            " pip install socksio, or unset all_proxy"
        ) from None
    except Exception as error:
        # of a name in no_proxy, which is no ValueError
        invalid = type(error).__name__ == "InvalidURL"
        if isinstance(error, UserError) or not (
            invalid or isinstance(error, ValueError) and "proxy" in str(error).lower()
        ):
            raise
        if invalid and os.environ.get("no_proxy", os.environ.get("NO_PROXY")):
            raise UserError(
                "no_proxy needs names and addresses such as localhost,.example.org, with commas"
                f" between them; httpx says: {' '.join(str(error).split())[:200]}"
            ) from None
        raise UserError(
            "http_proxy, https_proxy and all_proxy need addresses such as"
            f" http://proxy.example:3128; httpx says: {' '.join(str(error).split())[:200]}"
        ) from None


def _tidy() -> None:
    """Take brackets off the addresses in no_proxy: curl reads them, httpx does not."""
    for name in ("no_proxy", "NO_PROXY"):
        if "[" in os.environ.get(name, ""):
            os.environ[name] = re.sub(r"\[([0-9a-fA-F:.]+)\](:\d+)?", r"\1", os.environ[name])

"""The page's owner and who is none: decided request by request, never by the address it listens on.

The owner is whoever asks straight from this machine with nothing in between, or who has the token
that the console shows. Everybody else is a stranger, for whom the public rules hold. A front that
leaves no sign of itself (a TCP tunnel, a proxy that rewrites Host and adds nothing) cannot be told
from the owner: before such a one, DMTD_OWNER=token leaves the token as the only way.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dmtd_demo.errors import UserError

Scope = MutableMapping[str, Any]
Headers = list[tuple[str, str]]  # names in small letters

SETTING = "DMTD_OWNER"
STATE = "standing"  # under which the door leaves its judgement in the state of a request

# What proxies, tunnels and content networks add. No browser sends a header that begins with x- by
# itself, so each of those counts but the ones of Gradio's own clients.
SIGNS = frozenset(
    "forwarded forwarded-for via client-ip true-client-ip cluster-client-ip remote-addr remote-host"
    " remote-user max-forwards cdn-loop surrogate-capability front-end-https".split()
)
SIGN_PREFIXES = tuple(
    "x- cf- fly- fastly- akamai- ngrok- tailscale- proxy- wl-proxy- cloudfront- incap-".split()
)
DIRECT = frozenset("x-gradio-user x-requested-with x-hf-authorization".split())

HOST = re.compile(r"(\[[0-9a-f:.]+(?:%[^\]\s]+)?\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?")
HERE = frozenset({"127.0.0.1", "::1"})


@dataclass(frozen=True)
class Standing:
    """The rights of a request: all that the owner may, or what the public rules allow.

    because: why it is not the owner's. refused: it gets that sentence and nothing else.
    """

    owner: bool
    because: str = ""
    refused: bool = False


OWNER = Standing(True)
UNKNOWN = Standing(False, "it did not come in by the page's own door")


@dataclass(frozen=True)
class Trust:
    """The rules of one page.

    loopback: whether a request straight from this machine is the owner's. token: whoever has it is
    the owner; None: nobody is by it. names: under which the page is known on this machine, besides
    localhost. addresses: of this machine, besides those of loopback."""

    loopback: bool = True
    token: str | None = None
    names: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()

    @classmethod
    def of(cls, host: str | None, share: bool, address: str | None = None) -> Trust:
        """Read the rules of a page that listens at `host`.

        share: also through Gradio's servers. address: of this machine in its network, where a
        lecture counts it as the lecturer's. On a Space nobody is the owner. Raises UserError where
        DMTD_OWNER is neither of the two.
        """
        text = os.environ.get(SETTING, "").strip().lower() or "loopback"
        if text not in ("loopback", "token"):
            raise UserError(
                f"{SETTING} needs loopback, where whoever asks straight from this machine is the"
                f" owner, or token, where only the token makes one; got {text!r}"
            )
        if os.environ.get("SPACE_ID"):
            return cls(loopback=False)
        own = frozenset({address} if address else ())
        names = frozenset({plain(host)} if host else ())
        return cls(text == "loopback" and not share, secrets.token_urlsafe(24), names, own)

    def judge(self, scope: Scope) -> Standing:
        """Return the standing of an ASGI request."""
        headers = [
            (name.decode("latin-1").lower(), value.decode("latin-1").strip())
            for name, value in scope["headers"]
        ]
        other = _other_site(headers)
        if self.token and self._keeps_token(headers, scope):
            return Standing(False, other) if other else OWNER
        if not self.loopback:
            why = "only the token makes an owner here" if self.token else "this page has no owner"
            return Standing(False, why)
        sign, client = _sign(headers, scope), scope.get("client")
        address = _address(str(client[0])) if client else ""
        if address not in HERE and address not in self.addresses:
            return Standing(False, sign or "it does not come straight from this machine")
        hosts = [value for name, value in headers if name == "host"]
        name, port = split_host(hosts[0]) if len(hosts) == 1 else ("", 0)
        own = int((scope.get("server") or ("", 0))[1] or 0)
        if not self._is_own_name(name):
            # A site whose name was made to lead here is asked for with this very port, whatever
            # headers it adds; a front has its own, and says that it is one. No address can be
            # made to lead elsewhere.
            foreign = address in HERE and not _address(name) and (not sign or port == own)
            asked = ", ".join(hosts)[:100] or "no host"
            because = f"it asks for {asked}; on this machine the page is localhost:{own}"
            return Standing(False, because if foreign or not sign else sign, foreign)
        if sign or port != own:
            return Standing(False, sign or f"it asks for port {port}; the page is localhost:{own}")
        return Standing(False, other) if other else OWNER

    def is_token(self, text: str) -> bool:
        """Say whether this is the token, by a comparison that takes as long for every text."""
        return self.token is not None and hmac.compare_digest(text.encode(), self.token.encode())

    def set_cookie(self, scope: Scope) -> str:
        """Return the value of the header that has a browser keep the token."""
        secure = scope.get("scheme") == "https" or any(
            name.lower() == b"x-forwarded-proto" and value.strip().lower().startswith(b"https")
            for name, value in scope["headers"]
        )
        path = urlsplit(scope.get("root_path", "")).path.rstrip("/") or "/"
        kept = f"{_cookie(scope)}={self.token}; Path={path}; HttpOnly; SameSite=Strict"
        return kept + "; Secure" if secure else kept

    def _keeps_token(self, headers: Headers, scope: Scope) -> bool:
        given = [
            part.strip().partition("=")
            for name, value in headers
            if name == "cookie"
            for part in value.split(";")
        ]
        return any([self.is_token(text) for name, _, text in given if name == _cookie(scope)])

    def _is_own_name(self, name: str) -> bool:
        name = _address(name) or name
        return name == "localhost" or name in HERE or name in self.names or name in self.addresses


def standing_of(request: object) -> Standing:
    """Return the judgement on the request of an event, whatever Gradio has wrapped it in.

    A request that did not come through the door is nobody's.
    """
    found = getattr(getattr(request, "state", None), STATE, None)
    return found if isinstance(found, Standing) else UNKNOWN


def plain(host: str) -> str:
    """Return a name or an address as it is compared: in small letters, without brackets."""
    name = host.strip().lower().strip("[]")
    return _address(name) or name


def split_host(text: str) -> tuple[str, int]:
    """Return name and port that a Host header asks for; ("", 0) where it is none."""
    match = HOST.fullmatch(text.lower())
    return (match[1].strip("[]"), int(match[2] or 80)) if match else ("", 0)


def _cookie(scope: Scope) -> str:
    return f"dmtd-owner-{(scope.get('server') or ('', 0))[1]}"  # a cookie itself knows no ports


def _address(text: str) -> str:
    """Return an IP address as it is compared, an IPv4 one that is written as IPv6 as IPv4; else
    empty."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    return str(getattr(address, "ipv4_mapped", None) or address)


def _sign(headers: Headers, scope: Scope) -> str:
    """Return the sign that something lies between the request and whoever asks; else empty."""
    for given, _ in headers:
        # as some fronts write it
        name = given.replace("_", "-")
        if name in SIGNS or name.startswith(SIGN_PREFIXES) and name not in DIRECT:
            return f"it was forwarded, as its header {given} says"
    # No browser has spoken it for decades; nginx does, where it is told no better.
    return "it was forwarded, as its HTTP/1.0 says" if scope.get("http_version") == "1.0" else ""


def _other_site(headers: Headers) -> str:
    """Return the sign that a page of another site asks, in the owner's browser; else empty."""
    sites = [value for name, value in headers if name == "sec-fetch-site"]
    origins = [value for name, value in headers if name == "origin"]
    asked = ("host", "x-forwarded-host")
    hosts = {_without_port(value) for name, value in headers if name in asked}
    if sites:
        own = all(site in ("same-origin", "none") for site in sites)
    else:
        own = all(_without_port(origin.partition("//")[2]) in hosts for origin in origins)
    return "" if own else "a page of another site asks"


def _without_port(host: str) -> str:
    """Return a host without the port that nobody writes."""
    return re.sub(r":(80|443)$", "", host.partition(",")[0].strip().lower())

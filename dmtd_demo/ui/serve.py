"""Open the page: everything that Gradio takes at launch."""
from __future__ import annotations

import ipaddress
import os
import signal
import socket
import threading
from typing import Any, NoReturn

import gradio as gr
from gradio import routes
from starlette.middleware import Middleware

from dmtd_demo.errors import UserError
from dmtd_demo.ui.allowance import Allowance
from dmtd_demo.ui.assets import STYLE
from dmtd_demo.ui.headers import Headers
from dmtd_demo.ui.sessions import SESSIONS, Sessions
from dmtd_demo.ui.texts import I18N
from dmtd_demo.ui.theme import theme

TRAINING = "They can train add-ons, which are written under runs/ and keep the machine from everybody else meanwhile; other files they cannot read or write here."


def is_loopback(host: str | None = None) -> bool:
    """Whether only this machine can reach the page, so that its visitors are whoever started it."""
    if os.environ.get("SPACE_ID") or os.environ.get("GRADIO_SHARE", "").lower() in ("true", "1"):
        return False
    host = (host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1").strip("[]")
    try:
        return all(ipaddress.ip_address(str(found[4][0]).partition("%")[0]).is_loopback for found in socket.getaddrinfo(host, None))
    except (OSError, ValueError):
        return False


def check_address(host: str | None = None, port: int | None = None) -> None:
    """Raises UserError where the page could not listen; Gradio itself would try twenty ports in vain, and say so twenty times."""
    host = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    text = str(port or os.environ.get("GRADIO_SERVER_PORT") or 0)   # 0: any free one
    if not text.isdecimal() or int(text) > 65535:
        raise UserError(f"the port needs to be a whole number from 1 to 65535; got {text!r}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), int(text), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        where = f"port {text} of {host}" if int(text) else f"the address {host}"
        raise UserError(f"the page needs a free port to listen on; {where} gave: {getattr(error, 'strerror', None) or error}") from None


def opened(host: str | None, share: bool, allowance: Allowance, train: bool = False) -> str:
    """What whoever starts a page that others can reach has to know."""
    where = "by everybody who has its link" if share else "by everybody who opens this Space" if os.environ.get("SPACE_ID") else f"at {host or os.environ.get('GRADIO_SERVER_NAME')} by everybody in the network"
    limits = [f"{number:,} {what}" for what, number in (("characters of prompt", allowance.prompt_characters), ("new tokens a panel", allowance.new_tokens), ("panels", allowance.panels),
                                                        ("races a minute for one address", allowance.races_per_minute)) if number]
    return (f"This page can be reached {where}. They can race, load and unload the models of the list, one after another on this machine; no other folder or hub id. "
            f"{TRAINING if train else 'They cannot read or write files here.'} Limits for each of them: {', '.join(limits) or 'none'} (DMTD_… in the README).")


def end(*_: Any) -> NoReturn:
    """A polite request to end is what Ctrl-C is: races stop at their next pass."""
    raise KeyboardInterrupt


def serve(page: gr.Blocks, host: str | None = None, port: int | None = None, browser: bool = True, share: bool = False) -> None:
    """Serve the page until it is interrupted. host and port None leave the choice to Gradio's own environment."""
    os.environ.setdefault("GRADIO_RUN_HISTORY", "False")   # otherwise prompts are kept in the visitor's browser
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)
    routes.StateHolder = Sessions
    try:
        page.launch(server_name=host, server_port=port, inbrowser=browser, share=share or None, footer_links=[], theme=theme(), css_paths=[STYLE], i18n=I18N,
                    app_kwargs={"middleware": [Middleware(Headers)]}, max_file_size=1,   # the page takes no files: a race is opened in the browser
                    ssr_mode=False,   # one server, one policy
                    state_session_capacity=SESSIONS)
    except OSError as error:
        raise UserError(f"the page needs a free port to listen on; {error}") from error

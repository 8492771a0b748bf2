"""Open the page: everything that Gradio takes at launch."""

from __future__ import annotations

import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import gradio as gr
from gradio import http_server, routes
from starlette.middleware import Middleware

from dmtd_demo.errors import UserError
from dmtd_demo.machine import on_zero_gpu
from dmtd_demo.proxies import proxy_errors, straight_to_loopback
from dmtd_demo.server import window
from dmtd_demo.server.address import bracketed
from dmtd_demo.server.allowance import Allowance
from dmtd_demo.server.door import Door
from dmtd_demo.server.headers import Headers
from dmtd_demo.server.lecture import Broadcast, Lecture
from dmtd_demo.server.trust import Trust
from dmtd_demo.ui.i18n import I18N
from dmtd_demo.ui.race_view import PLOTLY, PLOTLY_PATH
from dmtd_demo.ui.sessions import SESSIONS, Sessions
from dmtd_demo.ui.theme import theme
from dmtd_demo.web.files import ICON
from dmtd_demo.web.stylesheet import STYLES
from dmtd_demo.web.texts import english

THREADS = 200  # where a class shares the page: each race that waits holds one
TRAINING = (
    "They can train add-ons, which are written under runs/ and keep the machine from everybody "
    "else meanwhile; other files they cannot read or write here."
)
NO_FILES = "They cannot read or write files here."


def opened(
    host: str | None,
    share: bool,
    allowance: Allowance,
    train: bool = False,
    servers: Sequence[str] = (),
    lecture: Lecture | None = None,
) -> str:
    """Say what whoever starts a page that others can reach has to know."""
    where = (
        "by everybody who has its link"
        if share
        else "by everybody who opens this Space"
        if os.environ.get("SPACE_ID")
        else f"at {host or os.environ.get('GRADIO_SERVER_NAME')} by everybody in the network"
    )
    limits = [
        f"{number:,} {what}"
        for what, number in (
            ("characters of prompt", allowance.prompt_characters),
            ("new tokens a panel", allowance.new_tokens),
            ("panels", allowance.panels),
            ("races a minute for one address", allowance.races_per_minute),
        )
        if number
    ]
    what = (
        "race the models that are in memory, each race on a GPU that is lent for it"
        if on_zero_gpu()
        else "race, load and unload the models of the list, one after another on this machine"
    )
    if lecture:
        what = (
            "race the models that are in memory, in turns, after yours; see the races that you run "
            "on this machine, live at /class (the address and its QR code: /class/join)"
            + (f", and play {_saved(len(lecture.files))} of yours" if lecture.files else "")
        )
    asked = (
        f"What they ask in a remote panel goes to {' or '.join(servers)}, with your key. "
        if servers
        else ""
    )
    return (
        f"This page can be reached {where}. They can {what}; no other folder or hub id. "
        f"{asked}{TRAINING if train and not on_zero_gpu() else NO_FILES} "
        f"Limits for each of them: {', '.join(limits) or 'none'} (DMTD_… in the README)."
    )


def _saved(number: int) -> str:
    return "one saved race" if number == 1 else f"{number} saved races"


def end(*_: Any) -> NoReturn:
    """Treat a polite request to end as Ctrl-C: races stop at their next pass."""
    raise KeyboardInterrupt


class Server(http_server.Server):
    """Gradio's server, which at :: takes IPv4 too, as everybody expects of that address."""

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        if self.config.host == "::" and socket.has_dualstack_ipv6():
            address = ("::", self.config.port)
            both = socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True)
            super().run([both])
        else:
            super().run(sockets)


def _until_closed(page: gr.Blocks, url: str) -> None:
    try:
        window.show(url, english("page.title"))
    except KeyboardInterrupt:
        print("Interrupted: the server ends.")
    finally:
        page.close()


@dataclass(frozen=True)
class Place:
    """Where a page is served and shown. host and port None leave the choice to Gradio's own
    environment; own_window: in place of the browser.
    """

    host: str | None = None
    port: int | None = None
    browser: bool = True
    share: bool = False
    own_window: bool = False


def serve(
    page: gr.Blocks,
    place: Place = Place(),
    trust: Trust = Trust(),
    lecture: Lecture | None = None,
) -> None:
    """Serve the page until it is interrupted, or until its own window is closed.

    trust: who its owner is. Raises UserError where there is no free port.
    """
    # otherwise prompts are kept in the visitor's browser
    os.environ.setdefault("GRADIO_RUN_HISTORY", "False")
    # otherwise whoever asks from this machine writes down what address the request comes from
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "none")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)
    # in the place of Gradio's own classes, which it looks up as it starts
    setattr(routes, "StateHolder", Sessions)  # noqa: B010 - mypy lets no class be assigned
    setattr(http_server, "Server", Server)  # noqa: B010
    door = Middleware(
        Door,
        trust=trust,
        files={PLOTLY_PATH: PLOTLY},
        title=english("page.title"),
        events={number: len(event.inputs) for number, event in page.fns.items()},
    )
    try:
        with straight_to_loopback(asks_others=place.share), proxy_errors():
            page.launch(
                server_name=bracketed(place.host),
                server_port=place.port,
                share=place.share or None,
                pwa=True,
                favicon_path=ICON,
                # what comes after the start is said, and opened, here
                prevent_thread_lock=True,
                footer_links=[],
                theme=theme(),
                css_paths=list(STYLES),
                i18n=I18N,
                app_kwargs={
                    "middleware": [
                        door,
                        *([Middleware(Broadcast, lecture)] if lecture else []),
                        Middleware(Headers),
                    ]
                },
                max_file_size=1,  # the page takes no files: a race is opened in the browser
                ssr_mode=False,  # one server, one policy
                enable_monitoring=False,
                state_session_capacity=SESSIONS,
                max_threads=THREADS if lecture else 40,
            )
    except OSError as error:
        raise UserError(f"the page needs a free port to listen on; {error}") from error
    url = str(page.local_url)
    if page.server_name == "[::]":  # every address there is, and none that a browser asks for
        url = f"http://localhost:{page.server_port}/"
    if trust.token:
        where = f"{page.share_url}/" if page.share_url else url
        print(f"* The owner's rights from anywhere else: {where}?token={trust.token}")
    if place.own_window:
        _until_closed(page, url)
        return
    if place.browser:
        webbrowser.open(page.share_url or url)
    page.block_thread()

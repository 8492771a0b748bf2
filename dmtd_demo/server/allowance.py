"""The share of one visitor of a page that others can reach, set by whoever runs it."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, fields
from typing import Callable

from dmtd_demo.errors import UserError
from dmtd_demo.server.trust import standing_of

MINUTE = 60.0
FEWEST_PANELS, MOST_PANELS = 2, 4  # of one race on the page


@dataclass(frozen=True)
class Allowance:
    """The most that one visitor may ask for; None: no limit but the model's own.

    prompt_characters: of one prompt. new_tokens: of one panel. panels: of one race.
    races_per_minute: of one address.
    """

    prompt_characters: int | None = None
    new_tokens: int | None = None
    panels: int | None = None
    races_per_minute: int | None = None

    @classmethod
    def of(cls, public: bool, environment: dict[str, str] | None = None) -> Allowance:
        """Read the settings DMTD_PROMPT_CHARACTERS, DMTD_NEW_TOKENS, DMTD_PANELS and
        DMTD_RACES_PER_MINUTE, 0 for none; what they leave out is PUBLIC where others can reach the
        page, and unlimited on one's own machine.

        Raises UserError.
        """
        given = os.environ if environment is None else environment
        values: dict[str, int | None] = {}
        for each in fields(cls):
            name = f"DMTD_{each.name.upper()}"
            text = given.get(name, "").strip()
            if text and not (text.isascii() and text.isdecimal()):
                raise UserError(f"{name} needs a whole number, or 0 for no limit; got {text!r}")
            values[each.name] = (
                (int(text) or None) if text else getattr(PUBLIC, each.name) if public else None
            )
        if values["panels"] == 1:
            raise UserError(
                f"DMTD_PANELS needs 2 to {MOST_PANELS}, the fewest and the most that a race has; "
                "got 1"
            )
        return cls(**values)

    def check(self, prompt: str, new_tokens: int, panels: int) -> None:
        """Raise UserError where a race asks for more."""
        for what, got, most in (
            ("a prompt of {} characters", len(prompt), self.prompt_characters),
            ("{} new tokens", new_tokens, self.new_tokens),
            ("{} panels", panels, self.panels),
        ):
            if most is not None and got > most:
                raise UserError(
                    f"this page allows each visitor {what.format(f'up to {most:,}')}; got {got:,}: "
                    "start the app on your own machine for more"
                )


PUBLIC = Allowance(
    prompt_characters=20_000, new_tokens=1024, panels=MOST_PANELS, races_per_minute=60
)


def may_train(own: bool) -> bool:
    """Say whether visitors may train add-ons: where they sit at this machine, and elsewhere with
    DMTD_TRAIN=1.

    Raises UserError.
    """
    text = os.environ.get("DMTD_TRAIN", "").strip()
    if text not in ("", "0", "1"):
        raise UserError(
            "DMTD_TRAIN needs 1 where visitors may train add-ons, or 0 where they may not; got "
            f"{text!r}"
        )
    return text == "1" if text else own


@dataclass(frozen=True)
class Rights:
    """The rights of one visitor.

    anything: load any folder or hub id, and see where folders lie. train: train add-ons. allowance:
    of each race.
    """

    anything: bool = False
    train: bool = False
    allowance: Allowance = Allowance()


@dataclass(frozen=True)
class Rules:
    """The rights of a page's owner, and those of everybody else."""

    owner: Rights = Rights()
    stranger: Rights = Rights()

    @classmethod
    def read(cls, owned: bool) -> Rules:
        """Read the settings of the environment.

        owned: whether the page has an owner at all. Raises UserError.
        """
        stranger = Rights(False, may_train(False), Allowance.of(public=True))
        if not owned:
            return cls(stranger, stranger)
        return cls(Rights(True, may_train(True), Allowance.of(public=False)), stranger)

    def of(self, request: object) -> Rights:
        """Return the rights of an event's request, asked where the work is done, whatever the page
        shows."""
        return self.owner if standing_of(request).owner else self.stranger


class Turnstile:
    """Counts the races of every address over the last minute. clock: seconds."""

    MOST_ADDRESSES = 10_000  # beyond them, those that have been quiet for a minute are forgotten

    def __init__(self, allowance: Allowance, clock: Callable[[], float] = time.monotonic) -> None:
        self.allowance = allowance
        self.clock = clock
        self._lock = threading.Lock()
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    def enter(self, address: str) -> None:
        """Count a race that begins. Raises UserError where this address has had its share."""
        most = self.allowance.races_per_minute
        if most is None:
            return
        with self._lock:
            now = self.clock()
            times = self._times[address]
            self._forget(times, now)
            if len(times) >= most:
                raise UserError(
                    f"this page allows {most} races a minute for one address, and yours has had "
                    f"them: try again in {max(1, round(times[0] + MINUTE - now))} s"
                )
            times.append(now)
            if len(self._times) > self.MOST_ADDRESSES:
                for each in list(self._times):
                    self._forget(self._times[each], now)
                    if not self._times[each]:
                        del self._times[each]

    @staticmethod
    def _forget(times: deque[float], now: float) -> None:
        while times and times[0] <= now - MINUTE:
            times.popleft()


def address_of(request: object) -> str:
    """Return the address that a request comes from.

    On a Space every request comes through its own proxy, which appends the visitor's address to the
    header.
    """
    headers = getattr(request, "headers", None) or {}
    forwarded = str(headers.get("x-forwarded-for", "")) if os.environ.get("SPACE_ID") else ""
    client = getattr(request, "client", None)
    return forwarded.split(",")[-1].strip() or str(getattr(client, "host", "") or "")

"""Gradio's queue, which shares the interpreter with a race."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from dmtd_demo.models.loading import load
from dmtd_demo.models.residents import Residents
from dmtd_demo.ui.page import QUEUE_SECONDS, build

SECONDS = 0.4


@pytest.mark.parametrize("loop", ["start_processing", "start_progress_updates"])
def test_it_looks_for_work_no_more_often_than_asked(
    monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    queue, wait, looks = build(Residents(load("classroom", threads=1)))._queue, asyncio.sleep, 0

    async def counted(seconds: float) -> None:
        nonlocal looks
        looks += 1
        await wait(seconds)

    async def for_a_while() -> None:
        monkeypatch.setattr(asyncio, "sleep", counted)
        looking = asyncio.ensure_future(getattr(queue, loop)())
        await wait(SECONDS)
        looking.cancel()

    # Playwright's loop runs in this one, once a browser test has come before
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, for_a_while()).result()
    assert 1 <= looks <= SECONDS / QUEUE_SECONDS + 1

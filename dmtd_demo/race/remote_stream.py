"""The answer of an OpenAI-compatible server as it comes: pieces of text, and its end.

Servers differ in what they send beside the text; what each of them means is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from dmtd_demo.errors import ModelError

# bytes of one line of its stream
MOST_LINE = 1_000_000
# as many pieces per new token that was asked for: beyond it the server does not keep to the limit
MOST_PIECES = 4
# seconds from the finish_reason on: for the count of tokens, which some servers send last, while
# others never end the stream
AFTER_SECONDS = 2.0
DONE = "[DONE]"
# before the first line of a stream: white space, and a byte-order mark
BLANK = b" \t\r\n\xef\xbb\xbf"
THINKS = ("<think>\n", "\n</think>\n\n")


@dataclass(frozen=True)
class Piece:
    """A piece of text that came at once.

    logprob, and top as (text, probability), where the server says them.
    """

    text: str
    logprob: float | None = None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Finish:
    """The end of an answer.

    reason: eos or length. tokens: how many the server counted, None where it does not say.
    """

    reason: str
    tokens: int | None


async def answer_parts(
    response: httpx.Response, max_new_tokens: int
) -> AsyncGenerator[Piece | Finish, None]:
    """Yield the pieces of an answer, and its end.

    It ends with a finish_reason, or with [DONE] alone; whatever else ends the stream broke it off.
    What a server calls reasoning comes between <think> and </think>, each a piece of its own.
    Raises ModelError, httpx.HTTPError, and ValueError, LookupError, TypeError or AttributeError
    where it is no such answer.
    """
    count, marks, tokens, reason, thinks = 0, 0, None, None, False
    whole = {"thought": _Whole(), "text": _Whole()}
    async with contextlib.aclosing(_events(response)) as events:
        while (data := await _next(events, finished=bool(reason))) not in (None, DONE):
            chunk = json.loads(data)
            _check(chunk)
            counted = (chunk.get("usage") or {}).get("completion_tokens")
            tokens = counted if isinstance(counted, int) and counted > 0 else tokens
            for choice in chunk.get("choices") or []:
                if choice.get("index"):
                    continue
                said = _said(choice.get("delta") or choice.get("message") or {})
                texts = {kind: whole[kind].add(words) for kind, words in said.items()}
                # which token is which of two texts is not told
                known = choice.get("logprobs") if not all(texts.values()) else None
                for kind, words in texts.items():
                    if words and (kind == "thought") is not thinks:
                        yield Piece(THINKS[thinks])
                        thinks, marks = not thinks, marks + 1
                    for piece in _pieces(words, known):
                        count += 1
                        if count > max_new_tokens * MOST_PIECES + MOST_PIECES:
                            raise ModelError(
                                f"sent more than the {max_new_tokens} new tokens that it was "
                                "asked for"
                            )
                        yield piece
                reason = choice.get("finish_reason") or reason
    if reason in ("error", "abort") or not reason and data != DONE:
        raise ModelError("broke off in the middle of its answer")
    if reason is None:
        reason = "length" if (tokens or count) >= max_new_tokens else "stop"
    if thinks and reason != "length":
        yield Piece(THINKS[1])
        marks += 1
    # the marks are none of the server's tokens
    yield Finish(
        "length" if reason == "length" else "eos", tokens or (count if marks and count else None)
    )


class _Whole:
    """A text whose characters may come in halves: surrogates, in one chunk each."""

    def __init__(self) -> None:
        self._half = ""

    def add(self, text: str) -> str:
        """Return what is whole now; a half that nothing completes is U+FFFD."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return _clean(text)


def _clean(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _said(delta: dict[str, Any]) -> dict[str, str]:
    """Return what a chunk has of the model's thoughts and of its answer."""
    thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
    content = delta.get("content") or ""
    if isinstance(content, list):
        # in parts, of which some are thoughts, in parts themselves
        thought += _parts(content, "thinking")
        content = _parts(content, "text")
    return {"thought": thought, "text": content}


def _parts(content: list[dict[str, Any]], kind: str) -> str:
    return "".join(
        _parts(part[kind], "text") if isinstance(part[kind], list) else part[kind]
        for part in content
        if part.get("type", "text") == kind and part.get(kind)
    )


def _check(chunk: Any) -> None:
    """Raise ModelError for a chunk that says an error.

    An error of null, or with nothing in it, is none.
    """
    error = chunk.get("error")
    if isinstance(error, dict) and not any(error.values()):
        error = None
    if chunk.get("object") == "error":
        error = error or chunk
    if error:
        words = (error.get("message") or error) if isinstance(error, dict) else error
        raise ModelError(f"failed: {_clean(' '.join(str(words).split()))[:200]}")


def _pieces(text: str, logprobs: Any) -> list[Piece]:
    """Split a chunk into its tokens where the server says which they are."""
    said = (logprobs or {}).get("content") or []
    if said and "".join(each["token"] for each in said) == text:
        return [
            Piece(
                each["token"],
                _finite(each["logprob"]),
                tuple(
                    (_clean(str(other["token"])), math.exp(_finite(other["logprob"])))
                    for other in each.get("top_logprobs") or []
                ),
            )
            for each in said
        ]
    return [Piece(text)] if text else []


def _finite(logprob: Any) -> float:
    """Bound a log-probability: some servers write -inf, or one over 0, where they rounded."""
    return max(-100.0, min(0.0, float(logprob)))


async def _next(events: AsyncIterator[str], finished: bool) -> str | None:
    """Return the next event, None at the end.

    finished: nothing is lost any more with the connection, and only what comes soon is waited for.
    """
    try:
        return await asyncio.wait_for(events.__anext__(), AFTER_SECONDS if finished else None)
    except StopAsyncIteration:
        return None
    except (asyncio.TimeoutError, httpx.HTTPError):
        if not finished:
            raise
        return None


async def _events(response: httpx.Response) -> AsyncGenerator[str, None]:
    """Yield the data of each event; of a server that does not stream, its whole answer.

    That is known by its first character too: errors come as JSON whatever was asked for. Raises
    ModelError where it is no answer.
    """
    whole = response.headers.get("content-type", "").startswith("application/json")
    begun, waiting = False, b""
    async for chunk in response.aiter_bytes():
        waiting += chunk
        if not begun and (start := waiting.lstrip(BLANK)):
            begun, whole = True, whole or start.startswith(b"{")
        if not whole:
            # any of the three ends of a line that the form allows
            waiting = waiting.replace(b"\r", b"\n")
        lines = []
        if not whole:
            *lines, waiting = waiting.split(b"\n")
        if any(len(line) > MOST_LINE for line in (*lines, waiting)):
            raise ModelError(f"sent a line of over {MOST_LINE:,} bytes")
        for line in lines:
            if data := _data(line):
                yield data
    if whole:
        text = waiting.decode("utf-8", "replace").removeprefix("\ufeff")
        yield text
        if "choices" not in json.loads(text):
            words = _clean(" ".join(text.split()))[:200]
            raise ModelError(f"answered something else than a chat completion: {words}")
        yield DONE
    elif data := _data(waiting):
        # of a last line without its end
        yield data


def _data(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip().removeprefix("\ufeff")
    return text[5:].strip() if text.startswith("data:") else ""

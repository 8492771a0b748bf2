"""`remote`: the server that writes a panel, by the chat API of OpenAI.

vLLM, SGLang and `transformers serve` speak it. What it did inside is not told: its tokens have an
origin of their own, and their times are those of their arrival here (race/remote.py).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from dmtd_demo.decoders.base import Options, option
from dmtd_demo.errors import ModelError, UserError
from dmtd_demo.models.chat import Message
from dmtd_demo.models.model import Model
from dmtd_demo.proxies import is_loopback_url, proxy_errors
from dmtd_demo.race.remote_stream import MOST_LINE, Finish, Piece, answer_parts
from dmtd_demo.race.settings import RaceSettings

# the environment variable with the server's key, which is sent to it and nowhere written
KEY = "DMTD_REMOTE_KEY"
CONNECT_SECONDS = 10.0
# seconds; the longest that a server may say nothing: it may have to load the model first
SILENCE_SECONDS = 120.0


@dataclass(frozen=True)
class RemoteOptions(Options):
    """The server's address and its model."""

    url: str | None = option(
        None, str, "address", "of an OpenAI-compatible server, such as http://127.0.0.1:8000"
    )
    name: str | None = option(
        None, str, "name", "of the model there; the first that it lists where none is given"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.url is None:
            raise UserError(
                "remote needs the address of an OpenAI-compatible server: "
                "remote:url=http://127.0.0.1:8000,name=MODEL"
            )
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise UserError(
                "the option url needs an address such as http://127.0.0.1:8000; "
                f"got {self.url[:200]!r}"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(
                "the option url needs an address alone, which every record shows; a key goes into "
                f"the environment variable {KEY}"
            )


class Remote:
    """A server elsewhere. It decodes by itself, and no model of ours is asked anything."""

    name = "remote"
    label = "A server elsewhere"
    Options = RemoteOptions

    def __init__(self, options: RemoteOptions) -> None:
        self.options = options

    @classmethod
    def missing(cls, model: Model) -> list[str]:
        """Say what it lacks: nothing, whichever model the page shows beside it."""
        return []

    @classmethod
    def resolve(cls, options: RemoteOptions, model: Model) -> RemoteOptions:
        """Return the options as they are."""
        return options

    @property
    def server(self) -> str:
        """The address without the /v1 at its end."""
        assert self.options.url is not None
        return re.sub(r"/v1$", "", self.options.url.rstrip("/"))

    async def answer(
        self, messages: Sequence[Message], settings: RaceSettings
    ) -> AsyncGenerator[Piece | Finish, None]:
        """Yield the server's answer to these messages as it comes, a Finish at the end.

        Raises ModelError in words.
        """
        sampling, top = settings.sampling, settings.top
        key = os.environ.get(KEY, "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with proxy_errors():
                client = httpx.AsyncClient(
                    headers=headers,
                    timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
                    trust_env=not is_loopback_url(self.server),
                )
            async with client:
                name = self.options.name or await self._first_model(client)
                plain = {
                    "model": name,
                    "messages": list(messages),
                    "stream": True,
                    "max_tokens": settings.max_new_tokens,
                    "temperature": sampling.temperature,
                    "top_p": sampling.top_p,
                    "seed": sampling.seed,
                    # what the text depends on is never left out
                    **({"top_k": sampling.top_k} if sampling.top_k else {}),
                    **({"ignore_eos": True} if settings.ignore_eos else {}),
                }
                more = {
                    "stream_options": {"include_usage": True},
                    "logprobs": True,
                    "chat_template_kwargs": {"enable_thinking": settings.thinking},
                    **({"top_logprobs": min(top, 20)} if top else {}),
                }
                # servers refuse fields that they do not know: first all fields, then without those
                # that only some know, then those that all understand
                for body in (
                    {**plain, **more},
                    {**plain, "chat_template_kwargs": more["chat_template_kwargs"]},
                    plain,
                ):
                    async with client.stream(
                        "POST", f"{self.server}/v1/chat/completions", json=body
                    ) as response:
                        if response.status_code in (400, 422) and body is not plain:
                            continue
                        if response.status_code != 200:
                            raise ModelError(await _refusal(response))
                        parts = answer_parts(response, settings.max_new_tokens)
                        async with contextlib.aclosing(parts):
                            async for part in parts:
                                yield part
                        return
        except UserError as error:
            # of the proxies
            raise ModelError(f"{self.server} cannot be reached: {error}") from None
        except (
            ModelError,
            httpx.HTTPError,
            httpx.InvalidURL,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            words = str(error) if isinstance(error, ModelError) else _what_failed(error)
            said = words.replace(key, "…") if key else words
            raise ModelError(f"{self.server} {said}") from None

    async def _first_model(self, client: httpx.AsyncClient) -> str:
        response = await client.get(f"{self.server}/v1/models")
        if response.status_code != 200:
            raise ModelError(
                f"lists no models (HTTP {response.status_code}): name one, remote:url=…,name=MODEL"
            )
        models = response.json()["data"]
        if not models:
            raise ModelError("lists no models: name one, remote:url=…,name=MODEL")
        return str(models[0]["id"])


async def _refusal(response: httpx.Response) -> str:
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MOST_LINE:
            break
    words = " ".join(body.decode(errors="replace").split())
    return f"answered HTTP {response.status_code}: {words[:200]}"


def _what_failed(error: Exception) -> str:
    if isinstance(error, httpx.ConnectError):
        return f"cannot be reached: {error}"
    if isinstance(error, httpx.ConnectTimeout):
        return f"cannot be reached: no connection within {CONNECT_SECONDS:.0f} s"
    if isinstance(error, httpx.TimeoutException):
        return f"said nothing for {SILENCE_SECONDS:.0f} s"
    if isinstance(error, httpx.HTTPError):
        return f"broke off: {error or type(error).__name__}"
    return f"answered something else than a chat completion: {' '.join(str(error).split())[:200]}"

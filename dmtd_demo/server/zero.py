"""A ZeroGPU Space: the GPU is lent for one call at a time, to a process forked from this one.

So the models are fixed at the start, a race is one such call that yields plain records, and nothing
that the call loads or changes comes back. The package `spaces` is imported before torch, by app.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import Conversations
from dmtd_demo.models.model import Model
from dmtd_demo.models.residents import Residents
from dmtd_demo.race.panels import PanelSpec
from dmtd_demo.race.race import race
from dmtd_demo.race.settings import RaceSettings
from dmtd_demo.race.trace import Burst

START_SECONDS = 15  # the process, the weights' way to the GPU, warm-up, prefill and audit
# of one token, without CUDA graphs: what launching a layer's kernels takes, with room to spare
LAYER_SECONDS = 0.0015
LONGEST_SECONDS = 120  # what a visitor may ask for in one call


class Lent:
    """Races on the lent GPU.

    models: all that there will ever be, put on cuda at the start. refusal: the error by which the
    package `spaces` says that it lends none, Gradio's own.
    """

    def __init__(self, models: Residents, refusal: type[Exception]) -> None:
        import spaces

        self.refusal = refusal
        # not the residents themselves: a lock that is held at the fork stays held
        self.models = {key: models.get(key) for key in models.keys}
        self._call: Callable[..., Generator[Burst, None, None]] = spaces.GPU(duration=self.seconds)(
            self._on_gpu
        )

    def race(
        self,
        models: Sequence[Model],
        panels: Sequence[PanelSpec],
        conversations: Conversations,
        settings: RaceSettings,
        should_stop: Callable[[], bool],
    ) -> Generator[Burst, None, None]:
        """Race as `dmtd_demo.race.race.race` does.

        Raises UserError also where no GPU is lent, in the words of the Space.
        """
        keys = [key for model in models for key, own in self.models.items() if own is model]
        with tempfile.TemporaryDirectory(prefix="dmtd-race-") as folder:
            stop = Path(folder) / "stop"  # the one thing that both processes see
            batches = self._call(keys, list(panels), conversations, settings, str(stop))
            try:
                for batch in batches:
                    if batch[0]["type"] == "refused":
                        raise UserError(batch[0]["message"])
                    if should_stop():
                        stop.touch()
                    yield batch
            except self.refusal as error:
                raise UserError(
                    f"{getattr(error, 'title', 'ZeroGPU')}: "
                    f"{re.sub('<[^>]*>', '', str(getattr(error, 'message', error)))}"
                ) from None
            finally:
                with contextlib.suppress(OSError):
                    stop.touch()
                batches.close()

    def seconds(
        self,
        keys: Sequence[str],
        panels: Sequence[PanelSpec],
        conversations: Conversations,
        settings: RaceSettings,
        *_: Any,
    ) -> int:
        """Return the seconds that the GPU is asked for: a full pass for every token of every panel,
        at worst."""
        worst = sum(
            settings.max_new_tokens * self.models[key].layers * LAYER_SECONDS for key in keys
        )
        return min(LONGEST_SECONDS, round(START_SECONDS + worst))

    def _on_gpu(
        self,
        keys: Sequence[str],
        panels: Sequence[PanelSpec],
        conversations: Conversations,
        settings: RaceSettings,
        stop: str,
    ) -> Iterator[Burst]:
        """Race in the forked process."""
        # before the Space ends the process, so that the texts stay
        ends = time.monotonic() + self.seconds(keys, panels, conversations, settings) - 2
        try:
            yield from race(
                [self.models[key] for key in keys],
                panels,
                conversations,
                settings,
                lambda: os.path.exists(stop) or time.monotonic() > ends,
            )
        except UserError as error:
            yield [{"type": "refused", "message": str(error)}]

"""The models in memory, which everybody who uses the app shares.

Equal weights are held once. Where the next one would not fit, the least recently used ones leave
for it, but never one that somebody's race is using.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dmtd_demo.errors import UserError
from dmtd_demo.machine import free
from dmtd_demo.models.finding import find
from dmtd_demo.models.loading import load
from dmtd_demo.models.memory import Sizes
from dmtd_demo.models.model import Model
from dmtd_demo.models.placement import Asked, Placement, place
from dmtd_demo.progress import Progress, no_progress

logger = logging.getLogger(__name__)
Identity = tuple[str, str, str]  # folder, quantization, dtype


@dataclass(eq=False)
class Resident:
    """A model in memory.

    name: what it was loaded by. used: when last, by a counter. users: how many races hold it now.
    """

    key: str
    name: str
    identity: Identity
    model: Model
    used: int
    users: int = 0


@dataclass(frozen=True)
class Left:
    """The names to load a model by again that made room for another."""

    key: str
    name: str
    quantization: str


@dataclass
class Arrival:
    """The outcome of a loading.

    key: of the model that was asked for. fresh: whether it had to be loaded. left: the keys of
    those that made room for it.
    """

    key: str
    fresh: bool
    left: list[str] = field(default_factory=list)


class Residents:
    """The models in memory, by key.

    first: the model that came first, which was loaded by `name`, with `addons` in place of its own
    where they are given. threads: CPU threads for those that come; None: what suits each.
    """

    def __init__(
        self,
        first: Model,
        name: str = "classroom",
        threads: int | None = None,
        addons: str | None = None,
    ) -> None:
        self._lock = threading.Lock()  # of the fields; held for moments
        self._loading = threading.Lock()  # one model is loaded at a time
        self._clock = itertools.count()
        self._threads = threads
        # by the name of a model, for whenever it comes again
        self._addons = {name: addons}
        self._held: dict[str, Resident] = {}
        self._add(first, name)

    @property
    def keys(self) -> list[str]:
        """Their keys, in the order in which they came."""
        with self._lock:
            return list(self._held)

    @property
    def names(self) -> list[str]:
        """The names that they were loaded by, in the same order."""
        with self._lock:
            return [resident.name for resident in self._held.values()]

    def get(self, key: object) -> Model:
        """Return the model of a key; raises UserError where it is not in memory."""
        with self._lock:
            return self._resident(key).model

    def name_of(self, key: object) -> str:
        """The name that it was loaded by. Raises UserError where it is not in memory."""
        with self._lock:
            return self._resident(key).name

    def peek(self, key: object) -> Model:
        """Return the model of a key, or where it is not in memory the one that was used last."""
        with self._lock:
            if not self._held:
                raise UserError(
                    "the page needs a model, and the next one is being loaded now: try again in a "
                    "moment"
                )
            held = self._held.get(key) if isinstance(key, str) else None
            return (held or max(self._held.values(), key=lambda resident: resident.used)).model

    @contextlib.contextmanager
    def using(self, keys: Sequence[object]) -> Iterator[list[Model]]:
        """Hold the models of these keys: none of them leaves before the block ends.

        Raises UserError where one is not in memory.
        """
        with self._lock:
            residents = [self._resident(key) for key in keys]
            for resident in residents:
                resident.users += 1
                resident.used = next(self._clock)
        try:
            yield [resident.model for resident in residents]
        finally:
            with self._lock:
                for resident in residents:
                    resident.users -= 1

    def plan(self, sizes: Sizes, context: int, quantization: str | None) -> Placement:
        """Place a model, counting on what the others can give up.

        Raises UserError where it would not fit.
        """
        return place(sizes, context, Asked(quantization, spare=self._spare()))

    def load(
        self, name: str, quantization: str | None = None, progress: Progress = no_progress
    ) -> Arrival:
        """Load a model, for which others may leave.

        Raises UserError, or what `progress` raises; then whatever left for it is back.
        """
        with self._loading:
            found = find(name)
            placement = self.plan(found.sizes, found.context, quantization)
            identity = _identity(found.folder, placement.quantization, placement.dtype)
            with self._lock:
                for resident in self._held.values():
                    if resident.identity == identity:
                        resident.used = next(self._clock)
                        return Arrival(resident.key, False)
            left: list[Left] = []
            try:
                model = load(
                    name,
                    quantization=quantization,
                    threads=self._threads,
                    addons=self._addons.get(name),
                    spare=self._spare(),
                    make_room=lambda p: self._make_room(p, left),
                    progress=progress,
                )
            except BaseException as error:
                # their frames hold what has been loaded so far
                error.__traceback__ = error.__context__ = None
                give_back()
                self._bring_back(left)
                raise
            return Arrival(self._add(model, name), True, [resident.key for resident in left])

    def unload(self, key: object) -> None:
        """Drop the model of a key. Raises UserError where it is in use, or the only one."""
        with self._lock:
            resident = self._resident(key)
            if resident.users:
                raise UserError(f"{key} is in use by a race: unload it when the race has ended")
            if len(self._held) == 1:
                raise UserError(
                    f"the page needs a model, and {key} is the only one in memory: load another "
                    "one first"
                )
            del self._held[resident.key]
        del resident
        give_back()

    def _add(self, model: Model, name: str) -> str:
        with self._lock:
            key = (
                model.name
                if model.quantization == "none"
                else f"{model.name} · {model.quantization}"
            )
            plain, number = key, 1
            while key in self._held:  # another folder of the same name
                number += 1
                key = f"{plain} ({number})"
            identity = _identity(
                model.folder or Path(model.name), model.quantization, model.backbone.dtype
            )
            self._held[key] = Resident(key, name, identity, model, next(self._clock))
            return key

    def _resident(self, key: object) -> Resident:
        if not isinstance(key, str) or key not in self._held:
            raise UserError(
                f"a panel needs a model that is in memory ({', '.join(self._held)}); {key!r} is "
                "not: load it under Models"
            )
        return self._held[key]

    def _idle(self) -> list[Resident]:
        return sorted(
            (resident for resident in self._held.values() if not resident.users),
            key=lambda resident: resident.used,
        )

    def _spare(self) -> int:
        with self._lock:
            return sum(resident.model.memory for resident in self._idle())

    def _make_room(self, placement: Placement, left: list[Left]) -> None:
        """Drop the least recently used models, and of those no more than it takes."""
        missing = placement.need.total - free(placement.device)
        if missing <= 0:
            return
        with self._lock:
            left += [self._let_go(key) for key in self._to_leave(missing)]
        give_back()

    def _let_go(self, key: str) -> Left:
        gone = self._held.pop(key)
        return Left(key, gone.name, gone.model.quantization)

    def _to_leave(self, missing: int) -> list[str]:
        """Choose models that nobody uses, the least recently used first, for so many bytes."""
        chosen, room = [], 0
        for resident in self._idle():
            if room < missing:
                chosen.append(resident)
                room += resident.model.memory
        # a small one may not be needed any more
        for resident in sorted(chosen, key=lambda resident: resident.model.memory):
            if room - resident.model.memory >= missing:
                chosen.remove(resident)
                room -= resident.model.memory
        return [resident.key for resident in chosen]

    def _bring_back(self, left: list[Left]) -> None:
        for gone in left:
            try:
                model = load(
                    gone.name,
                    quantization=gone.quantization,
                    threads=self._threads,
                    addons=self._addons.get(gone.name),
                )
                self._add(model, gone.name)
            except UserError as error:  # its files are no longer what they were
                logger.warning("%s could not be loaded again: %s", gone.key, error)


def _identity(folder: Path, quantization: str, dtype: torch.dtype) -> Identity:
    return str(folder.resolve()), quantization, str(dtype)


def give_back() -> None:
    """Give what nobody holds any more back to the machine."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""The model picker: a choice of models, loading one, and unloading.

Loading has a progress bar and a cancel. model_facts.py says what each model is and needs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from dmtd_demo.errors import Cancelled, UserError
from dmtd_demo.measure.availability import (
    here,
)
from dmtd_demo.models.catalog import CATALOG, CatalogEntry
from dmtd_demo.models.fetch import get
from dmtd_demo.models.finding import entry_of, find
from dmtd_demo.models.hub import is_id
from dmtd_demo.models.memory import amount
from dmtd_demo.models.placement import QUANTIZATIONS
from dmtd_demo.models.residents import Residents
from dmtd_demo.progress import Progress
from dmtd_demo.server.allowance import Rights, Rules
from dmtd_demo.server.job import Jobs
from dmtd_demo.ui.controls import OpenRadio
from dmtd_demo.ui.i18n import control
from dmtd_demo.ui.model_facts import ModelFacts, bar, complaint, parameters_of
from dmtd_demo.web.texts import span

OTHER = "another"  # the choice that the text field belongs to
FAILED = "the model could not be loaded; whoever runs this page sees why in its console"
Wanted = tuple[str, str]  # name, quantization
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class ModelPicker:
    """The model picker of a page.

    rules: whether a visitor may name any folder or hub id, and not only choose from the list.

    fixed: whether the models that are in memory now are all that there will be. shown: whether the
    page as it comes offers any other.
    """

    def __init__(
        self, models: Residents, rules: Rules, fixed: bool = False, shown: bool = False
    ) -> None:
        self.models = models
        self.rules = rules
        self.names = _names([*CATALOG, *models.names])
        self.first = next(value for value, name in self.names.items() if name == models.names[0])
        # whether there is anybody who may
        self.anything = (rules.owner.anything or rules.stranger.anything) and not fixed
        self.shown = shown
        self.fixed = fixed
        self.jobs = Jobs()
        self.facts_of = ModelFacts(models)

    def build(self) -> None:
        with gr.Accordion(
            control("control.models"), open=False, elem_id="models", elem_classes="popover"
        ) as self.popover:
            with gr.Column(elem_id="model-box"):
                with gr.Row(elem_id="model-columns"):
                    with gr.Column(elem_id="model-left", scale=0, min_width=200):
                        self.choice = OpenRadio(
                            self._choices(self.shown),
                            value=self.first,
                            label=control("models.choice"),
                            elem_id="model-choice",
                        )
                        if self.anything:
                            self.other = gr.Textbox(
                                placeholder=control("models.other.example"),
                                label=control("models.other"),
                                show_label=False,
                                container=False,
                                max_lines=1,
                                elem_id="model-other",
                                visible=False,
                            )
                    with gr.Column(elem_id="model-right", min_width=260):
                        entry = self._entry(self.names[self.first])
                        self.facts = gr.HTML(
                            self.facts_of.describe(entry, False), elem_id="model-facts"
                        )
                        self.quantization = OpenRadio(
                            elem_id="model-quantization",
                            label=control("models.quantization"),
                            **self.facts_of.quantizations(entry),
                        )
                        self.reason = gr.HTML(
                            self.facts_of.reason(entry, None), elem_id="model-reason"
                        )
                        if self.fixed:
                            gr.HTML(f"<p>{span('models.fixed')}</p>", elem_id="model-fixed")
                        with gr.Row(elem_id="model-buttons", visible=not self.fixed):
                            self.load = gr.Button(
                                control("models.load"),
                                variant="primary",
                                size="sm",
                                elem_id="model-load",
                            )
                            self.get = gr.Button(
                                control("models.get"),
                                size="sm",
                                elem_id="model-get",
                                visible=not here(entry),
                            )
                            self.cancel = gr.Button(
                                control("models.cancel"), size="sm", elem_id="model-cancel"
                            )
                        self.progress = gr.HTML("", elem_id="model-progress")
                with gr.Row(elem_id="model-memory"):
                    self.loaded = OpenRadio(
                        label=control("models.loaded"),
                        elem_id="model-loaded",
                        **self.facts_of.loaded(),
                    )
                    self.unload = gr.Button(
                        control("models.unload"),
                        size="sm",
                        elem_id="model-unload",
                        visible=not self.fixed,
                    )
            self.wanted = gr.State(None)
            self.arrived = gr.State(None)

    def wire(self, now: dict[str, Any]) -> gr.events.Dependency:
        """Return the event after which `arrived` may name a model that the panels are to use."""
        looked = [self.facts, self.quantization, self.reason, self.get]
        others = [self.other] if self.anything else []
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asked = []
        if self.anything:  # the hub may answer late: not over what was chosen meanwhile
            asked = [
                gr.on(
                    [self.other.submit, self.other.blur],
                    self.look,
                    [self.choice, self.other],
                    [*looked, self.other],
                    concurrency_limit=4,
                    **hidden,
                )
            ]
        self.choice.input(
            self.look, [self.choice, *others], [*looked, *others], cancels=asked, **now
        )
        self.quantization.input(
            self.explain, [self.choice, self.quantization, *others], self.reason, **now
        )
        self.popover.expand(self.refresh, None, self.loaded, **now)
        self.get.click(
            self.fetch,
            [self.choice, *others],
            [self.progress, self.facts, self.get],
            concurrency_limit=4,
            trigger_mode="once",
            **hidden,
        )
        self.cancel.click(self.request_cancel, None, None, **now)
        self.unload.click(
            self.drop,
            self.loaded,
            [self.progress, self.loaded],
            concurrency_id="device",
            concurrency_limit=1,
            **hidden,
        )
        return self.load.click(
            self.prepare,
            [self.choice, self.quantization, *others],
            [self.progress, self.wanted],
            concurrency_limit=4,
            trigger_mode="once",
            **hidden,
        ).success(
            # after the races that wait already
            self.bring,
            self.wanted,
            [self.progress, self.arrived, self.loaded],
            concurrency_id="device",
            concurrency_limit=1,
            **hidden,
        )

    def show_choices(self, rights: Rights) -> Any:
        """Return the models that a visitor with these rights is offered."""
        return gr.update(choices=self._choices(rights.anything))

    def _choices(self, anything: bool) -> list[tuple[str, str]]:
        listed = [(self._label(value), value) for value in self.names]
        return [*listed, (control("models.another"), OTHER)] if anything else listed

    def look(self, request: gr.Request, choice: Any, other: Any = "") -> list[Any]:
        """Say what there is to say about the chosen model."""
        rights = self.rules.of(request)
        field = [gr.update(visible=choice == OTHER and rights.anything)] * self.anything
        try:
            name = self._name(choice, other, rights)
            entry = self._entry(name)
            return [
                self.facts_of.describe(entry, rights.anything),
                gr.update(**self.facts_of.quantizations(entry)),
                self.facts_of.reason(entry, None),
                gr.update(visible=not here(entry)),
                *field,
            ]
        except UserError as error:
            words = (
                f"<p>{span('models.other.hint')}</p>"
                if choice == OTHER and not other and rights.anything
                else self._complaint(error, rights)
            )
            return [words, gr.skip(), "", gr.update(visible=False), *field]

    def explain(self, request: gr.Request, choice: Any, quantization: Any, other: Any = "") -> str:
        rights = self.rules.of(request)
        try:
            self._check_quantization(quantization)
            return self.facts_of.reason(
                self._entry(self._name(choice, other, rights)), quantization
            )
        except UserError as error:
            return self._complaint(error, rights)

    def refresh(self) -> Any:
        """Show what is in memory now: other visitors load and unload too."""
        return gr.update(**self.facts_of.loaded())

    def fetch(
        self, request: gr.Request, choice: Any, other: Any = ""
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Bring the model's files onto this machine, and no more."""
        job = self.jobs.new(str(request.session_hash))
        rights = self.rules.of(request)
        try:
            self._check_fixed()
            name = self._name(choice, other, rights)
            called = self._called(name)
            for state in job.run(lambda progress: get(name, progress), wait=False):
                yield bar(called, state), gr.skip(), gr.skip()
            done = f'<p role="status">{span("models.got", name=called)}</p>'
            facts = self.facts_of.describe(self._entry(name), rights.anything)
            yield done, facts, gr.update(visible=False)
        except Cancelled:
            yield self.facts_of.cancelled(), gr.skip(), gr.skip()
        except UserError as error:
            yield self._complaint(error, rights), gr.skip(), gr.skip()
        except Exception as error:  # the edge: a sentence for the visitor, the rest for the log
            logger.exception("a model could not be fetched")
            yield self._complaint(error, rights), gr.skip(), gr.skip()

    def prepare(
        self, request: gr.Request, choice: Any, quantization: Any, other: Any = ""
    ) -> Iterator[tuple[Any, Wanted | None]]:
        """Do everything that needs no device: may it be, does it fit, and the download."""
        job = self.jobs.new(str(request.session_hash))
        rights = self.rules.of(request)
        try:
            self._check_fixed()
            self._check_quantization(quantization)
            name = self._name(choice, other, rights)
            for state in job.run(
                lambda progress: self._fetch(name, quantization, progress), wait=False
            ):
                yield bar(self._called(name), state), None
            words = span("models.waiting", name=self._called(name))
            yield f'<p role="status">{words}</p>', (name, quantization)
        except Cancelled:
            yield self.facts_of.cancelled(), None
        except UserError as error:
            yield self._complaint(error, rights), None
        except Exception as error:  # the edge: a sentence for the visitor, the rest for the log
            logger.exception("a model could not be prepared")
            yield self._complaint(error, rights), None

    def bring(self, wanted: Wanted | None, request: gr.Request) -> Iterator[tuple[Any, Any, Any]]:
        """Bring the weights into memory. No race runs meanwhile."""
        if not wanted:
            yield gr.skip(), None, gr.skip()
            return
        name, quantization = wanted
        job = self.jobs.latest(str(request.session_hash))
        rights = self.rules.of(request)
        began = time.monotonic()
        try:
            self._check_fixed()
            # what was granted a moment ago was granted to that request, not to this one
            self._check_listed(name, rights)
            if job.cancelled.is_set():  # while it waited
                raise Cancelled
            arrival = yield from self._bars(
                self._called(name),
                job.run(lambda progress: self.models.load(name, quantization, progress), wait=True),
            )
            yield (
                self.facts_of.welcome(arrival, time.monotonic() - began),
                arrival.key,
                gr.update(**self.facts_of.loaded(arrival.key)),
            )
        except Cancelled:
            yield self.facts_of.cancelled(), None, gr.update(**self.facts_of.loaded())
        except UserError as error:
            yield self._complaint(error, rights), None, gr.update(**self.facts_of.loaded())
        except Exception as error:
            logger.exception("a model could not be loaded")
            yield self._complaint(error, rights), None, gr.update(**self.facts_of.loaded())

    def _bars(
        self, name: str, states: Generator[tuple[str, int, int], None, Result]
    ) -> Generator[tuple[Any, Any, Any], None, Result]:
        """Yield a bar for every state; return what the work returned."""
        while True:
            try:
                state = next(states)
            except StopIteration as end:
                return end.value
            yield bar(name, state), None, gr.skip()

    def request_cancel(self, request: gr.Request) -> None:
        self.jobs.latest(str(request.session_hash)).cancelled.set()

    def drop(self, key: Any, request: gr.Request) -> tuple[str, Any]:
        rights = self.rules.of(request)
        try:
            self._check_fixed()
            before = self.models.get(key).memory
            if not rights.anything and self.models.name_of(key) not in self.names.values():
                raise UserError(f"{key} is not of this page's list: its owner alone unloads it")
            self.models.unload(key)
            return (
                f'<p role="status">{span("models.left", key=key, memory=amount(before))}</p>',
                gr.update(**self.facts_of.loaded()),
            )
        except UserError as error:
            return self._complaint(error, rights), gr.update(**self.facts_of.loaded())

    def _check_fixed(self) -> None:
        if self.fixed:
            raise UserError(
                f"the models of this page are fixed ({', '.join(self.models.keys)}): start the app "
                "on your own machine for any other"
            )

    def _check_quantization(self, quantization: Any) -> None:
        if not isinstance(quantization, str) or quantization not in QUANTIZATIONS:
            raise UserError(
                f"quantization needs one of {', '.join(QUANTIZATIONS)}; got {quantization!r}"
            )

    def _name(self, choice: Any, other: Any, rights: Rights) -> str:
        """Return the model that the visitor asks for, where they may.

        Raises UserError, in words that are the same for what is there and what is not.
        """
        if choice == OTHER and self.anything and rights.anything:
            name = str(other or "").strip().strip("\"'")
            if not name:
                raise UserError(
                    "another model needs the path of a folder, or a hub id such as "
                    "Qwen/Qwen3-0.6B; the field is empty"
                )
            return str(Path(name).expanduser()) if name.startswith("~") else name
        if not isinstance(choice, str) or choice not in self.names:
            raise self._not_listed(choice)
        return self.names[choice]

    def _check_listed(self, name: str, rights: Rights) -> None:
        """Raise UserError where a model was named that this visitor may not load."""
        if not (self.anything and rights.anything) and name not in self.names.values():
            raise self._not_listed(name)

    def _not_listed(self, choice: Any) -> UserError:
        return UserError(
            f"this page runs the models of its list ({', '.join(self.names)}); got {choice!r}:"
            " start the app on your own machine for any other"
        )

    def _called(self, name: str) -> str:
        """Return a model as the page calls it."""
        return next((value for value, listed in self.names.items() if listed == name), name)

    def _complaint(self, error: Exception, rights: Rights) -> str:
        """Return the sentence of an error for this visitor.

        It says to strangers neither where folders lie nor what went wrong inside.
        """
        if rights.anything:
            return complaint(error)
        words = str(error) if isinstance(error, UserError) else FAILED
        for value, name in self.names.items():
            if value != name:
                for path in (str(Path(name).resolve()), name):
                    words = words.replace(path, value)
        return complaint(UserError(words))

    def _entry(self, name: str) -> CatalogEntry:
        return CATALOG[name] if name in CATALOG else entry_of(find(name))

    def _fetch(self, name: str, quantization: str, progress: Progress) -> None:
        progress("Looking at the model", 0, 0)
        entry = self._entry(name)
        self.facts_of.plan(entry, quantization)  # what does not fit is not fetched
        if not here(entry):
            get(name, progress)

    def _label(self, name: str) -> str:
        if name not in CATALOG:
            return name
        return f"{name} · {parameters_of(CATALOG[name].sizes.parameters)}"


def _names(names: Iterable[str]) -> dict[str, str]:
    """Return the models by what the page calls them.

    A folder by its own name, because strangers see it and its path is nobody's business but the
    owner's.
    """
    called: dict[str, str] = {}
    for name in dict.fromkeys(names):
        folder = name not in CATALOG and not is_id(name) or Path(name).is_dir()
        plain = Path(name).resolve().name if folder and name not in CATALOG else name
        value, number = plain, 1
        while value in called or value == OTHER:
            number += 1
            value = f"{plain} ({number})"
        called[value] = name
    return called

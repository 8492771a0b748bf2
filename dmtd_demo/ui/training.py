"""The part "Train add-ons": pick a model and an add-on, watch it learn, and use it at once.

Only for visitors who sit at this machine, or where the operator allows it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import gradio as gr

from dmtd_demo.destinations import make_folder
from dmtd_demo.errors import Cancelled, UserError
from dmtd_demo.models.addons import ADDONS, OF_HEADS, load_addons, save_addon
from dmtd_demo.models.attaching import keep_apart
from dmtd_demo.models.model import Model
from dmtd_demo.models.native_mtp import NativeMTP
from dmtd_demo.models.residents import Residents
from dmtd_demo.progress import Progress
from dmtd_demo.server.allowance import Rules
from dmtd_demo.server.job import Job, Jobs
from dmtd_demo.server.trust import standing_of
from dmtd_demo.text_files import read_text
from dmtd_demo.training.all_addons import AllSettings, Plan, train_all
from dmtd_demo.training.any_model import Settings, train_addon
from dmtd_demo.training.corpus import WORLD
from dmtd_demo.training.features import METHODS
from dmtd_demo.ui.controls import OpenRadio, OpenSlider
from dmtd_demo.ui.examples import of_the_world
from dmtd_demo.ui.i18n import control
from dmtd_demo.ui.model_facts import complaint
from dmtd_demo.ui.training_curves import Curves, picture
from dmtd_demo.web.texts import ENGLISH, label, slot, span

# updates: after them the small ones learn little more
STEPS = {"clp": 300, "native_clp": 300, "heads": 400, "gate": 300, "adaptive": 300}
FEWEST_ROWS, MOST_ROWS, ROWS = 20, 2000, 400
ALL = "all"  # every one of them, in the order in which they need each other
LEAST_MINUTES, MOST_MINUTES, MINUTES = 2, 240, 20
LOOK_SECONDS = 0.4  # between two drawings
OUTPUT = Path("runs")  # under which the results lie
ASKED = "asked.json"  # in the folder of a training until it is over: what it was asked for
# from which one that was cancelled goes on: its plan, a checkpoint, the model's own answers
BEGUN = ("all.json", "checkpoint/*.safetensors", "answers.jsonl")
CHECKPOINT_SECONDS = 30

# What the core says that it does -> key.
STAGES = {
    "": "stage.begin",
    "The model's own answers": "train.stage.answers",
    "Hidden states": "train.stage.features",
    "Training": "train.stage.steps",
    "Choosing the threshold": "train.stage.threshold",
}

logger = logging.getLogger(__name__)


class TrainingPart:
    """The part of the page that trains. rules: who may."""

    def __init__(self, models: Residents, rules: Rules) -> None:
        self.models = models
        self.rules = rules
        self.jobs = Jobs()
        # what a model without any add-on needs first
        model = models.get(models.keys[-1])
        self.first = "native_clp" if _own_head(model) else "clp" if model.has("mtp_heads") else ALL
        # the add-ons and facts that it came with
        self.earlier: WeakKeyDictionary[Model, tuple[dict, dict]] = WeakKeyDictionary()

    def build(self, visible: bool = True) -> None:
        with gr.Accordion(
            control("train.title"), open=False, visible=visible, elem_id="train"
        ) as self.part:
            with gr.Row(elem_id="train-columns"):
                with gr.Column(elem_id="train-left", scale=0, min_width=240):
                    gr.HTML(f"<p>{span('train.about')}</p>")
                    self.model = OpenRadio(
                        label=control("train.model"), elem_id="train-model", **self._models()
                    )
                    self.addon = OpenRadio(
                        _choices(self.models.get(self.models.keys[-1])),
                        value=self.first,
                        label=control("train.addon"),
                        elem_id="train-addon",
                    )
                    self.rows = OpenSlider(
                        FEWEST_ROWS,
                        MOST_ROWS,
                        ROWS,
                        step=20,
                        label=control("train.rows"),
                        elem_id="train-rows",
                        visible=self.first != ALL,
                    )
                    self.minutes = OpenSlider(
                        LEAST_MINUTES,
                        MOST_MINUTES,
                        MINUTES,
                        step=1,
                        label=control("train.minutes"),
                        elem_id="train-minutes",
                        visible=self.first == ALL,
                    )
                    with gr.Row(elem_id="train-buttons"):
                        self.start = gr.Button(
                            control("train.start"),
                            variant="primary",
                            size="sm",
                            elem_id="train-start",
                        )
                        self.cancel = gr.Button(
                            control("models.cancel"), size="sm", elem_id="train-cancel"
                        )
                        self.back = gr.Button(
                            control("train.back"), size="sm", elem_id="train-back"
                        )
                with gr.Column(elem_id="train-right", min_width=300):
                    self.progress = gr.HTML("", elem_id="train-progress")
                    self.figures = gr.HTML("", elem_id="train-figures")
            self.arrived = gr.State(None)

    def wire(self, now: dict[str, Any]) -> list[gr.events.Dependency]:
        """Return the events after which `arrived` may name a model whose add-ons are others."""
        # no race runs meanwhile
        hidden: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_id": "device",
            "concurrency_limit": 1,
        }
        self.part.expand(lambda: gr.update(**self._models()), None, self.model, **now)
        self.model.change(self._fitting, [self.model, self.addon], self.addon, **now)
        self.cancel.click(self.request_cancel, None, None, **now)
        # a control that has no effect is not there
        self.addon.change(
            lambda name: [gr.update(visible=name != ALL), gr.update(visible=name == ALL)],
            self.addon,
            [self.rows, self.minutes],
            **now,
        )
        # heard at once, whatever the queue does
        heard = json.dumps(f'<p role="status">{span("train.asked")}</p>')
        self.start.click(
            None,
            None,
            self.progress,
            js=f"() => window.dmtdRace.trains({heard})",
            show_progress="hidden",
        )
        return [
            self.start.click(
                self.train,
                [self.model, self.addon, self.rows, self.minutes],
                [self.progress, self.figures, self.arrived],
                trigger_mode="once",
                **hidden,
            ),
            self.back.click(self.put_back, self.model, [self.progress, self.arrived], **hidden),
        ]

    def train(
        self, request: gr.Request, key: Any, name: Any, rows: Any, minutes: Any = MINUTES
    ) -> Iterator[tuple[Any, Any, Any]]:
        job = self.jobs.new(str(request.session_hash))
        curves = Curves()
        try:
            self._check(request)
            if name == ALL:
                yield from self._all(job, key, minutes)
                return
            if not isinstance(name, str) or name not in STEPS:
                raise UserError(
                    f"training needs one of the add-ons {', '.join(STEPS)}; got {name!r}"
                )
            if (
                isinstance(rows, bool)
                or not isinstance(rows, int)
                or not FEWEST_ROWS <= rows <= MOST_ROWS
            ):
                raise UserError(
                    f"training needs {FEWEST_ROWS} to {MOST_ROWS} conversations; got {rows!r}"
                )
            with self.models.using([key]) as (model,):
                began, (output, again) = time.monotonic(), _folder(model, name, rows=rows)
                gone: list[str] = []

                def work(progress: Progress) -> None:
                    gone.extend(self._train(model, name, rows, output, progress, curves))

                yield from self._shown(
                    name,
                    job.run(work, wait=True),
                    curves,
                    again,
                )
                told = _left(gone)
                if (model.addon_facts[METHODS[name]].get("threshold") or 0) >= 1:
                    told = f" {span('train.nothing')}"
                # heads choose nothing by a threshold
                chooses = {"addon": name, "threshold": _threshold(model, name)}
                words = span(
                    "train.done_heads" if name == "heads" else "train.done",
                    seconds=f"{time.monotonic() - began:.0f}",
                    folder=slot("folder", f"<code>{escape(str(output / 'addons'))}</code>"),
                    **({} if name == "heads" else chooses),
                )
                yield f'<p role="status">{words}{told}</p>', picture(curves), key
        except Cancelled as cancelled:
            kept = f" {span('train.kept')}" if cancelled.args else ""
            yield f'<p role="status">{span("train.cancelled")}{kept}</p>', gr.skip(), None
        except UserError as error:
            yield complaint(error), gr.skip(), None
        except Exception as error:  # the edge: a sentence for the visitor, the rest for the log
            logger.exception("an add-on could not be trained")
            yield complaint(error), gr.skip(), None

    def _all(self, job: Job, key: Any, minutes: Any) -> Iterator[tuple[Any, Any, Any]]:
        """Train every add-on in one job, with one bar over all stages."""
        if (
            isinstance(minutes, bool)
            or not isinstance(minutes, int)
            or not LEAST_MINUTES <= minutes <= MOST_MINUTES
        ):
            raise UserError(
                f"training needs {LEAST_MINUTES} to {MOST_MINUTES} minutes; got {minutes!r}"
            )
        with self.models.using([key]) as (model,):
            began, (output, again) = time.monotonic(), _folder(model, ALL, minutes=minutes)
            plans: list[Plan] = []
            gone: list[str] = []

            def work(progress: Progress) -> None:
                settings = AllSettings(minutes=minutes, checkpoint_seconds=CHECKPOINT_SECONDS)
                with _kept(output):
                    train_all(model, output, settings, tell=progress, planned=plans.append)
                gone.extend(self._take(model, output / "addons"))

            shown = 0.0
            for stage, done, total in job.run(work, wait=True):
                if time.monotonic() - shown < LOOK_SECONDS:
                    continue
                shown = time.monotonic()
                yield _whole_bar(stage, done, total, plans, again), gr.skip(), None
            words = span(
                "train.all_done",
                seconds=f"{time.monotonic() - began:.0f}",
                folder=slot("folder", f"<code>{escape(str(output / 'addons'))}</code>"),
            )
            yield f'<p role="status">{words}{_left(gone)}</p>', gr.skip(), key

    def _take(self, model: Model, folder: Path) -> list[str]:
        """Put every add-on of a folder into the model; returns what left it, as `_give`."""
        modules, facts = load_addons(
            folder,
            model.backbone.hidden_size,
            model.backbone.dtype,
            model.backbone.device,
            model.base,
        )
        return self._give(model, {method: (modules[method], facts[method]) for method in modules})

    def _give(self, model: Model, learned: dict[str, tuple[Any, dict[str, Any]]]) -> list[str]:
        """Put add-ons into the model, by method; returns those that knew other MTP heads, and left
        it."""
        gone = []
        self.earlier.setdefault(model, (dict(model.addons), dict(model.addon_facts)))
        if "mtp_heads" in learned:
            gone = [m for m in OF_HEADS if m in model.addons and m not in learned]
            for method in gone:
                del model.addons[method]
                model.addon_facts.pop(method, None)
        for method, (module, facts) in learned.items():
            model.addons[method], model.addon_facts[method] = module, facts
        return gone

    def _train(
        self, model: Model, name: str, rows: int, output: Path, progress: Progress, curves: Curves
    ) -> list[str]:
        """Train in `output`, then put it into the model; returns what left it, as `_give`.

        `output`/addons has the model's other add-ons too, so that it gives elsewhere what the
        panels use here.
        """
        with _kept(output):
            return self._learn(model, name, rows, output, progress, curves)

    def _learn(
        self, model: Model, name: str, rows: int, output: Path, progress: Progress, curves: Curves
    ) -> list[str]:
        settings = Settings(
            data=WORLD if of_the_world(model) else None,
            rows=rows,
            steps=STEPS[name],
            resume=(output / "checkpoint" / f"{name}.safetensors").exists(),
            checkpoint_seconds=CHECKPOINT_SECONDS,
        )
        train_addon(name, model, output, settings, tell=progress, watch=curves.see)
        folder, method, size = output / "addons", METHODS[name], model.backbone.hidden_size
        modules, facts = load_addons(
            folder, size, model.backbone.dtype, model.backbone.device, model.base
        )
        gone = self._give(model, {method: (modules[method], facts[method])})
        for other in (model.addons.keys() & ADDONS.keys()) - {method}:
            save_addon(
                folder, other, model.addons[other], model.base, size, **model.addon_facts[other]
            )
        return gone
        keep_apart(model, folder)

    def _shown(
        self,
        name: str,
        states: Iterator[tuple[str, int, int]],
        curves: Curves,
        again: bool,
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Yield what the page shows of each state, and how long the stage will still take.

        again: the training goes on from where it was cancelled.
        """
        shown, stage, began = 0.0, None, 0.0
        for now, done, total in states:
            if now != stage:
                stage, began = now, time.monotonic()
            elif time.monotonic() - shown < LOOK_SECONDS:
                continue
            shown = time.monotonic()
            left = (shown - began) * (total - done) / done if done else None
            yield _bar(name, stage, done, total, left, again), picture(curves), None

    def request_cancel(self, request: gr.Request) -> None:
        self.jobs.latest(str(request.session_hash)).cancelled.set()

    def put_back(self, key: Any, request: gr.Request) -> tuple[Any, Any]:
        """Give the model the add-ons that it came with."""
        try:
            self._check(request)
            model = self.models.get(key)
            if model not in self.earlier:
                raise UserError(f"{key} has the add-ons that it came with")
            addons, facts = self.earlier.pop(model)
            for mine, its in ((model.addons, addons), (model.addon_facts, facts)):
                mine.clear()
                mine.update(its)
            return f'<p role="status">{span("train.put_back", key=key)}</p>', key
        except UserError as error:
            return complaint(error), None

    def _check(self, request: gr.Request) -> None:
        """Raise UserError where this visitor may not train."""
        if not self.rules.of(request).train:
            because = standing_of(request).because or "DMTD_TRAIN=0 leaves it to nobody"
            raise UserError(f"training is not open to this request: {because}")

    def _models(self) -> dict[str, Any]:
        keys = self.models.keys
        return {"choices": keys, "value": keys[-1] if keys else None}

    def _fitting(self, key: Any, name: Any) -> Any:
        """Show the add-ons that this model can learn."""
        try:
            choices = _choices(self.models.peek(key))
        except UserError:
            return gr.skip()
        known = name in [value for _, value in choices]
        return gr.update(choices=choices, value=name if known else ALL)


def _own_head(model: Model) -> bool:
    """Say whether a model's own weights bring an MTP head."""
    return isinstance(model.addons.get("native_mtp"), NativeMTP)


def _choices(model: Model) -> list[tuple[str, str]]:
    return [
        (control(f"train.addon.{name}"), name)
        for name in (ALL, *STEPS)
        if name != "native_clp" or _own_head(model)
    ]


def _folder(model: Model, name: str, **settings: Any) -> tuple[Path, bool]:
    """Return the folder of a training, and whether one that was cancelled goes on in it.

    That is one of the same model, heads and settings.
    """
    asked = {
        "model": model.name,
        "weights": model.base.fingerprint,
        "heads": None if name in (ALL, "heads") else model.addon_facts.get("mtp_heads"),
        "addon": name,
        **settings,
    }
    text = json.dumps(asked, sort_keys=True)
    for path in OUTPUT.glob(f"*/{ASKED}"):
        if read_text(path) == text:
            return path.parent, True
    output = _fresh(model, name)
    (output / ASKED).write_text(text, encoding="utf-8")
    return output, False


@contextlib.contextmanager
def _kept(output: Path) -> Iterator[None]:
    """Drop the folder of a training that fails, or is cancelled with nothing to go on from.

    Raises Cancelled with a word where the folder is kept.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Cancelled) and any(any(output.glob(part)) for part in BEGUN):
            raise Cancelled("kept") from error
        shutil.rmtree(output, ignore_errors=True)
        raise
    (output / ASKED).unlink(missing_ok=True)


def _fresh(model: Model, name: str) -> Path:
    """Return a folder for one training; a hub id gives the last part of its name."""
    return Path(
        tempfile.mkdtemp(
            prefix=f"{model.name.rpartition('/')[2]}-{name}-{datetime.now():%Y%m%d-%H%M%S}-",
            dir=make_folder(OUTPUT),
        )
    )


def _left(gone: Sequence[str]) -> str:
    """Say which add-ons left the model with the MTP heads that they knew."""
    return f" {span('train.left_out', addons=', '.join(gone))}" if gone else ""


def _threshold(model: Model, name: str) -> str:
    threshold = model.addon_facts[METHODS[name]].get("threshold")
    return "–" if threshold is None else str(threshold)


def _bar(
    name: str, stage: str, done: int, total: int, left: float | None, again: bool = False
) -> str:
    key = STAGES.get(stage, "stage.begin")
    much = slot("much", f"{done:,} / {total:,}") if total else ""
    rest = "" if left is None else f" · {span('train.left', seconds=f'{left:.0f}')}"
    value = f'value="{done}" max="{total}"' if total else ""
    doing = span("train.doing", addon=name, stage=slot("stage", span(key)), much=much)
    rest += _going_on(again)
    return f'<p role="status">{doing}{rest}</p><progress {value} {label(key)}></progress>'


def _going_on(again: bool) -> str:
    return f" · {span('train.again')}" if again else ""


def _whole_bar(stage: str, done: int, total: int, plans: Sequence[Plan], again: bool) -> str:
    """Draw the bar over all stages: what is done now, and the minutes that the whole still takes
    by the measurement of this machine."""
    name = stage.partition(": ")[0]
    key = f"train.all.{name}" if plans and f"train.all.{name}" in ENGLISH else "train.all.measuring"
    words, value = span(key), ""
    if plans and total:
        left = plans[-1].total * (1 - done / total)
        words += f" · {span('train.all.left', minutes=f'{left / 60:.1f}')}"
        value = f'value="{done}" max="{total}"'
    words += _going_on(again)
    return f'<p role="status">{words}</p><progress {value} {label(key)}></progress>'

"""`train all`: from a chat model's name to its add-ons and their figures, in one resumable run.

What the machine can do is measured first; from that come an estimate of the whole and, where the
minutes are given, how much is written and learned in them.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors.torch import load_file, save_file

from dmtd_demo.backbone.packed import dense_kept
from dmtd_demo.backbone.split import Split
from dmtd_demo.decoders.batched import Writing, batched_ar
from dmtd_demo.destinations import make_folder
from dmtd_demo.errors import UserError
from dmtd_demo.machine import free
from dmtd_demo.models.addons import MTPHeads, load_addons, save_addon
from dmtd_demo.models.attaching import keep_apart
from dmtd_demo.models.model import Model
from dmtd_demo.progress import Progress, no_progress
from dmtd_demo.sampling import Sampler, Sampling
from dmtd_demo.text_files import Form
from dmtd_demo.training import features, loop, magpie
from dmtd_demo.training.any_model import ROOM, STEPS, Lesson, Settings, apart, learn
from dmtd_demo.training.calibrate import on_held_out
from dmtd_demo.training.clp import prefix_length
from dmtd_demo.training.corpus import read_rows
from dmtd_demo.training.cycles import LONGEST
from dmtd_demo.training.data import Row
from dmtd_demo.training.heads import K
from dmtd_demo.training.masking import masked_hidden
from dmtd_demo.training.resuming import kept_state

STATE, FIGURES = "all.json", "evaluation.json"
# of SmolLM2's conversations: tokens that were drawn for each that was kept, and positions of one,
# those of its answer among them
DRAWN, POSITIONS, ANSWERED = 900, 250, 150
SMALL = 400  # rows that the small predictors learn from at most
HELD = 60  # held-out rows that thresholds and figures are read off at most
LOOK = 8.0  # seconds for which decoding is measured
# of the minutes that are given: for conversations and their hidden states, for heads, for the
# small ones; the rest is for the evaluation
SHARES = (0.65, 0.15, 0.1)
STAGES = ("data", "heads", "clp", "gate", "adaptive", "evaluation")


@dataclass(frozen=True)
class AllSettings:
    """The settings of a run from a model to its add-ons.

    conversations: to write, where no `minutes` say how many fit. data: JSON lines with messages in
    their place, whose last answers are the model's own all the same. batch: texts at once. Raises
    UserError for values that cannot be.
    """

    conversations: int = 2000
    minutes: float | None = None
    data: str | None = None
    batch: int = 64
    seed: int = 0
    checkpoint_seconds: float = 60

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:
            raise UserError(f"--minutes needs a number over 0; got {self.minutes}")
        magpie.DataSettings(self.conversations, self.batch, seed=self.seed)


@dataclass(frozen=True)
class Speeds:
    """Seconds: of a token among many texts, of a position through all layers, of a row of the LM
    head, and of an update of the heads."""

    token: float
    position: float
    lm_head: float
    update: float


@dataclass(frozen=True)
class Plan:
    """How much of each is done. seconds: what each stage should take, by the speeds."""

    conversations: int
    head_steps: int
    small_rows: int
    small_steps: int
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        each = ", ".join(f"{name} {s / 60:.1f}" for name, s in self.seconds.items())
        return (
            f"about {self.total / 60:.0f} minutes by a measurement ({each}): "
            f"{self.conversations:,} conversations, {self.head_steps:,} updates of the heads"
        )


@torch.no_grad()
def measure(model: Model, batch: int) -> Speeds:
    """Measure what the plan is made of, in some seconds. Raises UserError for base models."""
    backbone = model.backbone
    prefix, _ = magpie.users_turn(model, [])
    began, made = time.monotonic(), 0

    def told(tokens: int) -> None:
        nonlocal made, began
        if not made:
            # the first tokens are those of the prompts
            began = time.monotonic()
        made += tokens

    for _ in batched_ar(
        model,
        [prefix] * batch,
        96,
        Writing(
            batch=batch,
            sampler=Sampler(Sampling(1.0, 64), device=backbone.device),
            ends=frozenset(),
            go_on=lambda ids: time.monotonic() - began < LOOK,
        ),
        tell=told,
    ):
        pass
    token = (time.monotonic() - began) / max(made - batch, 1)
    ids = torch.randint(1, backbone.vocab_size, (1, 128), device=backbone.device)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    split = model.split or Split.default(model.layers)
    _wait_for(masked_hidden(backbone, split, ids, everywhere))
    began = time.monotonic()
    h = masked_hidden(backbone, split, ids, everywhere)
    _wait_for(h)
    position = (time.monotonic() - began) / 128
    began = time.monotonic()
    _wait_for(backbone.logits(h[0]).argmax(-1))
    lm_head = (time.monotonic() - began) / 128
    return Speeds(token, position, lm_head, _update(model))


def _update(model: Model) -> float:
    """Seconds of an update of the heads over as many tokens as a few hundred conversations have."""
    backbone = model.backbone
    n = features.DRAWN["heads"]
    labels = torch.arange(8192).remainder(min(8192, backbone.vocab_size // 2))
    seen = features.Features(torch.randn(n, backbone.hidden_size), labels[: n * K].view(n, K))
    made = features.recipe("heads", model, 0, 0, {}, labels)
    with torch.enable_grad(), dense_kept(backbone.module.get_output_embeddings()):
        for _ in range(2):
            began = time.monotonic()
            loss, _ = made.loss(seen.to(backbone.device), loop.Progress(0, 0, 0.0))
            loss.sum().backward()
            _wait_for(next(p.grad for p in made.trainable.parameters() if p.grad is not None))
    return time.monotonic() - began


def _wait_for(result: torch.Tensor) -> None:
    """Return when it is there: a GPU computes on while the host measures the time."""
    result.sum().item()


def planned(speeds: Speeds, settings: AllSettings) -> Plan:
    """Return how much is done: what was asked for, or what fits into the minutes."""
    written = (ANSWERED if settings.data else DRAWN) * speeds.token
    read = POSITIONS * speeds.position
    # layers for gate and twice for adaptive; the LM head for `ar`, every head and cycles
    small = 3 * POSITIONS * speeds.position + ANSWERED * (K + 3) * speeds.lm_head
    # updates of a predictor of some thousand parameters
    step = 0.02
    if settings.minutes is None:
        number, head_steps, judged = settings.conversations, STEPS["heads"], 120.0
        small_rows, small_steps = min(number, SMALL), STEPS["clp"]
    else:
        whole = 60 * settings.minutes
        data, heads, rest = (share * whole for share in SHARES)
        number = max(8, min(magpie.MOST["conversations"], int(data / (written + read))))
        head_steps = max(20, min(STEPS["heads"], int(heads / speeds.update)))
        small_steps = max(20, min(STEPS["clp"], int(rest / 6 / step)))
        # held-out rows cost the same
        small_rows = max(4, min(number, SMALL, int(rest / 2 / small * 0.8)))
        judged = (1 - sum(SHARES)) * whole
    held = min(HELD, max(2, small_rows // 4))
    each = (small_rows + held) * small
    seconds = {
        "data": number * written,
        "heads": number * read + head_steps * speeds.update,
        "clp": 0.7 * each + small_steps * step,
        "gate": small_steps * step * 2,
        "adaptive": 0.3 * each + small_steps * step,
        "evaluation": held * small + judged,
    }
    return Plan(number, head_steps, small_rows, small_steps, seconds)


# What STATE holds.
KEPT: Form = {
    "asked": dict,
    "done": dict,
    "plan": {
        **dict.fromkeys(("conversations", "head_steps", "small_rows", "small_steps"), int),
        "seconds": dict.fromkeys(STAGES, float),
    },
}


@dataclass(frozen=True)
class Rows:
    """Texts that heads learn from, that predictors learn from, and that everything is judged on.

    On the heads' own texts a predictor would learn to trust what they know by heart.
    """

    heads: list[Row]
    predictors: list[Row]
    held: list[Row]

    @staticmethod
    def of(learned: list[Row], held: list[Row]) -> Rows:
        """Part the texts to learn from; of one text alone there are no two parts."""
        heads, predictors = apart(learned)
        return Rows(heads, predictors, held)

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.heads) + len(self.predictors) + len(self.held)


# judge(folder of add-ons, held-out conversations, seconds): races for the figures that need a clock
Judge = Callable[[Path, Path, float], dict[str, Any]]


class AllAddons:
    """One run of `train all` in its folder: the plan, and which stages are done."""

    def __init__(
        self,
        model: Model,
        output: Path,
        settings: AllSettings,
        tell: Progress = no_progress,
        judge: Judge | None = None,
    ) -> None:
        self.model, self.output, self.settings = model, output, settings
        self.tell, self.judge = tell, judge
        self.stage, self.share = "", 0.0
        self.done: dict[str, Any] = {}
        make_folder(output)
        self.plan = self._planned()

    def _planned(self) -> Plan:
        """Read the plan of a run that goes on, or measure and make it. Raises UserError."""
        path = self.output / STATE
        asked = {"model": self.model.name, **asdict(self.settings)}
        del asked["checkpoint_seconds"]
        self._asked = asked
        if path.exists():
            kept = kept_state(path, KEPT)
            if kept["asked"] != asked:
                raise UserError(
                    f"{self.output} has a run of {kept['asked']}; this one is {asked}: give "
                    "another --output"
                )
            self.done = kept["done"]
            return Plan(**{f.name: kept["plan"][f.name] for f in fields(Plan)})
        self.tell("Measuring this machine", 0, 0)
        plan = planned(measure(self.model, self.settings.batch), self.settings)
        self.plan = plan
        self._save()
        return plan

    def _save(self) -> None:
        path = self.output / STATE
        state = {"asked": self._asked, "plan": asdict(self.plan), "done": self.done}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    def told(self, what: str, done: int, total: int) -> None:
        """Tell how far the whole run is, in thousandths of its seconds."""
        seconds, before = self.plan.seconds, 0.0
        for name in STAGES[: STAGES.index(self.stage)]:
            before += seconds[name]
        now = seconds[self.stage] * (done / total if total else 0.0)
        share = (before + min(now, seconds[self.stage])) / max(self.plan.total, 1e-9)
        # a stage has several parts, which begin anew; the whole only grows
        self.share = max(self.share, share)
        self.tell(f"{self.stage}: {what}", int(1000 * self.share), 1000)

    def run(self) -> dict[str, Any]:
        """Do the stages that are not done yet; return every stage's figures.

        Raises UserError, and Cancelled where `tell` does: what was done stays.
        """
        for name in STAGES:
            if name in self.done:
                continue
            self.stage = name
            self.told("", 0, 1)
            began = time.monotonic()
            facts = getattr(self, f"_{name}")()
            self.done[name] = {"seconds": round(time.monotonic() - began, 1), **facts}
            self._save()
        (self.output / FIGURES).write_text(json.dumps(self.done, indent=1) + "\n", encoding="utf-8")
        self.tell("", 1000, 1000)
        return self.done

    # -- stages -----------------------------------------------------------------------------------

    @property
    def _conversations(self) -> Path:
        return self.output / "data"

    def _data(self) -> dict[str, Any]:
        if self.settings.data:
            # the answers, which are kept
            return {"file": self.settings.data, "rows": self._rows().number}
        settings = magpie.DataSettings(
            self.plan.conversations,
            self.settings.batch,
            seed=self.settings.seed,
            seconds=self.plan.seconds["data"] if self.settings.minutes else None,
        )
        writer = magpie.write_conversations(
            self.model, self._conversations, settings, tell=self.told
        )
        return {
            "conversations": writer.kept,
            "tokens": writer.sum("tokens"),
            "dropped": dict(writer.dropped),
        }

    def _read(self, name: str, most: int) -> list[Row]:
        path = str(self._conversations / name)
        return read_rows(self.model, path, self.output / "answers.jsonl", most, tell=self.told)

    def _rows(self) -> Rows:
        """Read the rows, in three parts."""
        most = self.plan.conversations
        if self.settings.data:
            own = self.output / "answers.jsonl"
            rows = read_rows(self.model, self.settings.data, own, most, True, self.told)
            return Rows.of([row for i, row in enumerate(rows) if i % 10] or rows, rows[::10])
        learned = self._read(magpie.CONVERSATIONS, most)
        # of a handful of conversations none may be held out
        held = self._read(magpie.HELD_OUT, most) if self._has_held_out() else learned[:1]
        return Rows.of(learned, held)

    def _has_held_out(self) -> bool:
        return (self._conversations / magpie.HELD_OUT).stat().st_size > 0

    def _settings(self, steps: int, name: str) -> Settings:
        return Settings(
            data=self.settings.data or str(self._conversations / magpie.CONVERSATIONS),
            own_answers=self.settings.data is not None,
            steps=steps,
            seed=self.settings.seed,
            resume=(self.output / "checkpoint" / f"{name}.safetensors").exists(),
            checkpoint_seconds=self.settings.checkpoint_seconds,
        )

    def _source(self, heads: MTPHeads | None = None) -> features.Source:
        split = self.model.split or Split.default(self.model.layers)
        return features.Source(self.model.backbone, split, heads, self.settings.seed)

    def _learned(
        self, name: str, seen: features.Features, steps: int, k: int = 0
    ) -> tuple[torch.nn.Module, dict[str, Any]]:
        settings = self._settings(steps, name)
        facts = {
            "data": settings.source if self.settings.data else "conversations of its own",
            "positions": seen.tokens,
            "steps": steps,
            "seed": settings.seed,
        }
        lesson = Lesson(name, self.output, seen, k, facts)
        return learn(self.model, settings, lesson, self.told), facts

    def _heads(self) -> dict[str, Any]:
        rows = self._rows()
        seen = features.collect("heads", self._source(), rows.heads, _room(), self.told)
        self._learned("heads", seen, self.plan.head_steps)
        right = self._right(rows.held[:HELD])[1]
        return {
            "positions": seen.tokens,
            "accuracy": [round(x, 4) for x in right.float().mean(0).tolist()],
            "prefix": round(prefix_length(right).float().mean().item(), 4),
        }

    def _trained_heads(self) -> MTPHeads:
        backbone = self.model.backbone
        found, _ = load_addons(
            self.output / "addons",
            backbone.hidden_size,
            torch.float32,
            backbone.device,
            self.model.base,
        )
        heads = found["mtp_heads"]
        assert isinstance(heads, MTPHeads)
        return heads

    def _right(self, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """At every position that a decoder reads: h, and which heads are right there, [m, k]."""
        source = self._source(self._trained_heads())
        seen = features.collect("gate", source, rows, _room(), self.told)
        return seen.h, seen.labels

    def _few(self, held: list[Row]) -> list[Row]:
        """As many held-out texts as thresholds are read off."""
        return held[: max(2, min(HELD, self.plan.small_rows // 4))]

    def _small(self, held: bool) -> features.Features:
        """What clp and gate learn from, or are judged on, computed once for both."""
        path = self.output / f"right-{'held' if held else 'learned'}.safetensors"
        if path.exists():
            kept = load_file(path)
            return features.Features(kept["h"], kept["right"] != 0)
        rows = self._rows()
        read = self._few(rows.held) if held else rows.predictors[: self.plan.small_rows]
        h, right = self._right(read)
        # aside, then moved: a run that is killed here leaves no half of it
        part = path.with_suffix(".part")
        save_file({"h": h.contiguous(), "right": right.byte()}, part)
        part.replace(path)
        return features.Features(h, right)

    def _calibrated(
        self,
        name: str,
        module: torch.nn.Module,
        facts: dict[str, Any],
        held: features.Features,
        k: int,
    ) -> dict[str, Any]:
        """Set the add-on's threshold by held-out positions, whose labels are lengths."""
        found = on_held_out(name, module, held.h, held.labels, k)
        method, hidden = features.METHODS[name], self.model.backbone.hidden_size
        folder = self.output / "addons"
        save_addon(folder, method, module, self.model.base, hidden, **{**facts, **found})
        return found

    def _clp(self) -> dict[str, Any]:
        learned, held = self._small(False), self._small(True)
        k = learned.labels.shape[-1]
        lengths = [replace(seen, labels=prefix_length(seen.labels)) for seen in (learned, held)]
        module, facts = self._learned("clp", lengths[0], self.plan.small_steps, k)
        return self._calibrated("clp", module, facts, lengths[1], k)

    def _gate(self) -> dict[str, Any]:
        learned, held = self._small(False), self._small(True)
        k = learned.labels.shape[-1]
        module, facts = self._learned("gate", learned, self.plan.small_steps, k)
        lengths = replace(held, labels=prefix_length(held.labels))
        return self._calibrated("gate", module, facts, lengths, k)

    def _adaptive(self) -> dict[str, Any]:
        rows, room = self._rows(), _room()
        # no heads are asked, so all texts serve
        learned = (rows.predictors + rows.heads)[: self.plan.small_rows]
        seen = features.collect("adaptive", self._source(), learned, room, self.told)
        module, facts = self._learned("adaptive", seen, self.plan.small_steps)
        facts["split"] = str(self._source().split)
        held = self._few(rows.held)
        try:
            judged = features.collect("adaptive", self._source(), held, room, self.told)
        except UserError:
            # the few held-out answers are shorter than a cycle
            judged = seen
        found = self._calibrated("adaptive", module, facts, judged, LONGEST - 1)
        keep_apart(self.model, self.output / "addons")
        return found

    def _evaluation(self) -> dict[str, Any]:
        for part in ("held", "learned"):
            (self.output / f"right-{part}.safetensors").unlink(missing_ok=True)
        if self.judge is None or self.settings.data or not self._has_held_out():
            return {}
        held = self._conversations / magpie.HELD_OUT
        return self.judge(self.output / "addons", held, self.plan.seconds["evaluation"])


def _room() -> int:
    """Bytes of hidden states at most."""
    return min(ROOM, free("cpu") // 4)


def train_all(
    model: Model,
    output: Path,
    settings: AllSettings,
    *,
    tell: Progress = no_progress,
    judge: Judge | None = None,
    planned: Callable[[Plan], None] = lambda plan: None,
) -> dict[str, Any]:
    """Write conversations, train heads, CLP, gate and cycle lengths, and judge them, in `output`.

    The add-ons lie in `output`/addons, every stage's figures in evaluation.json. tell: hears of the
    whole run, in thousandths, and may raise Cancelled; called again with the same settings, the run
    goes on where it was. planned: hears the plan with its estimate. judge: makes the races of the
    evaluation. Raises UserError.
    """
    run = AllAddons(model, output, settings, tell, judge)
    planned(run.plan)
    return run.run()

"""`train data`: conversations that a chat model writes itself, both sides of them.

Given its chat template up to the user's turn, an instruction-tuned model writes a user's message;
then it answers (Magpie, Xu et al., arXiv 2406.08464). Messages are drawn, answers are greedy, so
that they are what heads and layers have to predict. What was cut off, runs in a loop or was there
before is left out, and counted by its reason. Left to itself a model writes what its training data
holds; with openings, a few words that a first message begins with, it writes what people ask.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from tqdm import tqdm

from dmtd_demo.decoders.batched import Writing, Written, batched_ar
from dmtd_demo.destinations import make_folder
from dmtd_demo.errors import UserError
from dmtd_demo.models.chat import Message, check_text, encode_chat
from dmtd_demo.models.model import Model
from dmtd_demo.models.template import render
from dmtd_demo.progress import Progress, no_progress
from dmtd_demo.sampling import Sampler, Sampling
from dmtd_demo.text_files import Form, lines_of, read_text
from dmtd_demo.training.resuming import checked, kept_lines

CONVERSATIONS, HELD_OUT = "conversations.jsonl", "held_out.jsonl"
LOG, CARD = "draws.jsonl", "README.md"
OPENINGS = Path(__file__).with_name("openings.txt")  # everyday ones, that ship
USER, ANSWER = 160, 512  # tokens of a message, and of an answer, at most
# a user's message is drawn from the likeliest tokens alone: one odd token makes an odd request
TOP_K, TOP_P = 64, 0.95
LAST, REPEATED = 64, 0.5  # of so many last tokens this share of 4-grams again: a loop
DULL = 0.3  # share of an answer's 4-grams that occurred before in it, at most
# conversations of a draw, for each text that is written at once, at most: the more, the less often
# the last texts of a draw are written with hardly any others beside them
PER_ROW = 4
# lines of LOG after its first, and of the two files of conversations
DRAW: Form = {"drawn": int, "kept": int, "dropped": dict, "tokens": float, "seconds": float}
KEPT: Form = {"draw": int, "messages": [{"role": str, "content": str}]}
HOPELESS = 512  # conversations of which none was kept
STAGE = "Conversations of its own"


# of what is kept for each in memory
MOST = {"conversations": 10_000_000, "batch": 4096, "turns": 64}


@dataclass(frozen=True)
class DataSettings:
    """What is written. conversations: to keep, the held-out ones among them; batch: texts at once;
    turns: answers of a conversation at most. seconds: an end by the clock, with as many as there
    are then. openings: the first message of a conversation begins with one of them, where there are
    any. Raises UserError for values that cannot be.
    """

    conversations: int
    batch: int = 64
    turns: int = 1
    temperature: float = 1.0
    answer_temperature: float = 0.0
    seed: int = 0
    seconds: float | None = None
    openings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise UserError(
                    f"--{name} needs a whole number from 1 to {most:,}; got {getattr(self, name)}"
                )
        # what Sampling refuses is refused before the first draw
        Sampling(self.temperature, seed=self.seed)
        Sampling(self.answer_temperature)

    def told(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that it goes on."""
        names = ("batch", "turns", "temperature", "answer_temperature", "seed")
        told = {name: getattr(self, name) for name in names}
        # folders written without any go on as they were
        return told | ({"openings": _hash("\n".join(self.openings))} if self.openings else {})


def is_held_out(messages: Sequence[Message]) -> bool:
    """Whether a conversation belongs to the tenth that is never trained on, by its content."""
    return int(_hash(json.dumps(list(messages), sort_keys=True)), 16) % 10 == 0


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def repetition(ids: Sequence[int]) -> float:
    """Share of 4-grams that occurred before in the same text; 0 for fewer than 4 tokens."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def users_turn(model: Model, messages: Sequence[Message]) -> tuple[list[int], frozenset[int]]:
    """Return the template up to the text of the user's next turn, and the tokens that may end it.

    Raises UserError for a model without a chat template.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{model.name} has no chat template, so it cannot write conversations itself; the "
            "recipes need --data FILE with texts to learn from"
        )
    mark = "\ue000text\ue001"
    whole = render(tokenizer, [*messages, {"role": "user", "content": mark}])
    before, _, after = whole.rpartition(mark)
    special = set(tokenizer.get_added_vocab().values())
    end = tokenizer(after, add_special_tokens=False).input_ids[:1]
    return (
        tokenizer(before, add_special_tokens=False).input_ids,
        model.eos_ids | frozenset(end if special.issuperset(end) else ()),
    )


def read_openings(file: str | None) -> tuple[str, ...]:
    """Return the lines of a file that say something; of none, no openings; `everyday` is the list
    that ships. Raises UserError.
    """
    if file is None:
        return ()
    path = OPENINGS if file == "everyday" else Path(file)
    try:
        found = tuple(line.strip() for _, line in lines_of(read_text(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--openings needs a text file; {file} cannot be read: {error}") from None
    if not found:
        raise UserError(f"--openings needs a file with an opening on each line; {file} has none")
    for opening in found:
        check_text(opening)
    return found


@dataclass
class Draft:
    """A conversation that is being written. opening: what its first message begins with. gone: why
    it is left out.
    """

    messages: list[Message]
    opening: str = ""
    gone: str = ""


class Writer:
    """The folder of one run: what was kept, and what has been drawn so far."""

    def __init__(self, model: Model, folder: Path, settings: DataSettings) -> None:
        self.model, self.folder, self.settings = model, folder, settings
        self.draws: list[dict[str, Any]] = []
        self.seen: set[str] = set()
        self.kept = 0
        self._special: list[str] = []
        self._until = math.inf
        users_turn(model, [])
        assert model.tokenizer is not None
        self._special = [token for token in model.tokenizer.get_added_vocab() if token.strip()]
        make_folder(folder)
        self._resume()

    def _resume(self) -> None:
        """Read what was drawn; of a draw that was cut off, nothing stays."""
        lines = kept_lines(self.folder / LOG)
        wanted = {"model": self.model.name, **self.settings.told()}
        if lines and lines[0] != wanted:
            raise UserError(
                f"{self.folder} has conversations written with {lines[0]}; this run has {wanted}: "
                "give another --output"
            )
        if not lines:
            _append(self.folder / LOG, [wanted])
        log = self.folder / LOG
        self.draws = [checked(line, f"{log} line {n}", DRAW) for n, line in enumerate(lines[1:], 2)]
        for name in (CONVERSATIONS, HELD_OUT):
            path = self.folder / name
            whole = [
                checked(line, f"{path} line {number}", KEPT)
                for number, line in enumerate(kept_lines(path, {"draw": int}), 1)
                if line["draw"] < len(self.draws)
            ]
            path.write_text("".join(json.dumps(line) + "\n" for line in whole))
            self.kept += len(whole)
            self.seen |= {_hash(_plain(line["messages"])) for line in whole}

    @property
    def dropped(self) -> Counter[str]:
        """How many conversations were left out so far, by reason."""
        total: Counter[str] = Counter()
        for draw in self.draws:
            total.update(draw["dropped"])
        return total

    def sum(self, name: str) -> float:
        """The sum of one of the draws' figures."""
        return sum(draw[name] for draw in self.draws)

    def draw(self, tell: Progress, bar: tqdm[Any], until: float = math.inf) -> None:
        """Draw some batches of conversations, and keep those that are whole.

        until: a time on the monotonic clock, after which texts end as they are.
        """
        number, settings = len(self.draws), self.settings
        self._until = until
        began, tokens = time.monotonic(), 0

        def told(made: int) -> None:
            nonlocal tokens
            tokens += made
            share = self.kept / settings.conversations
            if settings.seconds is not None:
                # what is being written counts only when a whole draw is there: the clock goes on
                share = max(share, 1 - (until - time.monotonic()) / settings.seconds)
            tell(STAGE, round(1000 * min(share, 1.0)), 1000)
            rate = tokens / (time.monotonic() - began)
            bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
            bar.update(0)

        # every second one may be left out
        batches = math.ceil(2 * (settings.conversations - self.kept) / settings.batch)
        drafts = self.drafts(min(PER_ROW, max(batches, 1)) * settings.batch, number)
        for turn in range(settings.turns):
            open_ = [draft for draft in drafts if not draft.gone]
            self.ask(open_, f"{settings.seed}:{number}:{turn}", told)
            self._answer(open_, f"{settings.seed}:{number}:{turn}:answer", told)
            for draft in drafts:
                # what came before a turn that failed is a conversation
                if draft.gone and len(draft.messages) >= 2:
                    draft.messages = draft.messages[: len(draft.messages) // 2 * 2]
        dropped: Counter[str] = Counter()
        kept: dict[str, list[dict[str, Any]]] = {CONVERSATIONS: [], HELD_OUT: []}
        for draft in drafts:
            if draft.gone:
                dropped[draft.gone] += 1
            if len(draft.messages) >= 2:
                name = HELD_OUT if is_held_out(draft.messages) else CONVERSATIONS
                kept[name].append({"messages": draft.messages, "draw": number})
        room = settings.conversations - self.kept
        for name, lines in kept.items():
            kept[name] = lines = lines[:room]
            room -= len(lines)
            _append(self.folder / name, lines)
            # of what was left out nothing is remembered, as after an interruption
            self.seen |= {_hash(_plain(line["messages"])) for line in lines}
            self.kept += len(lines)
            bar.update(len(lines))
        facts = {
            "drawn": len(drafts),
            "kept": sum(map(len, kept.values())),
            "dropped": dict(dropped),
            "tokens": tokens,
            "seconds": round(time.monotonic() - began, 1),
        }
        # last, and in one line: without it the draw does not count
        _append(self.folder / LOG, [facts])
        self.draws.append(facts)

    def _written(
        self,
        prompts: list[list[int]],
        longest: int,
        sampling: Sampling,
        ends: frozenset[int],
        told: Any,
    ) -> Iterator[Written]:
        sampler = Sampler(sampling, device=self.model.backbone.device)
        return batched_ar(
            self.model,
            prompts,
            longest,
            Writing(self.settings.batch, sampler, ends, self._goes_on),
            tell=told,
        )

    def drafts(self, n: int, number: int) -> list[Draft]:
        """Return so many conversations to begin, the draw's number deciding how they open."""
        order = random.Random(f"{self.settings.seed}:{number}:openings")
        return [Draft([], order.choice(self.settings.openings or ("",))) for _ in range(n)]

    def ask(self, drafts: list[Draft], seed: str, told: Callable[[int], None]) -> None:
        """Write each conversation's next message of the user. told: hears of tokens."""
        turns = [users_turn(self.model, draft.messages) for draft in drafts]
        turns = [(ids + self._opening(d), ends) for (ids, ends), d in zip(turns, drafts)]
        self._keep_short(drafts, [prompt for prompt, _ in turns])
        asked = [(d, t) for d, t in zip(drafts, turns) if not d.gone]
        sampling = Sampling(self.settings.temperature, TOP_K, TOP_P, int(_hash(seed)[:15], 16))
        if not asked:
            return
        new: set[str] = set()
        for w in self._written(
            [prompt for _, (prompt, _) in asked], USER, sampling, asked[0][1][1], told
        ):
            draft = asked[w.index][0]
            text = self._text(w, "user turn", draft, self._opening(draft))
            if draft.gone:
                continue
            message = {"role": "user", "content": text}
            mark = _hash(_plain([message]))
            if not draft.messages and (mark in self.seen or mark in new):
                draft.gone = "duplicate"
                continue
            new.add(mark)
            draft.messages.append(message)

    def _answer(self, drafts: list[Draft], seed: str, told: Any) -> None:
        """Write the answers to the messages that stand."""
        drafts = [draft for draft in drafts if not draft.gone]
        prompts = [encode_chat(self.model.tokenizer, draft.messages) for draft in drafts]
        self._keep_short(drafts, prompts)
        pairs = [(d, p) for d, p in zip(drafts, prompts) if not d.gone]
        sampling = Sampling(self.settings.answer_temperature, seed=int(_hash(seed)[:15], 16))
        for w in self._written([p for _, p in pairs], ANSWER, sampling, self.model.eos_ids, told):
            draft = pairs[w.index][0]
            text = self._text(w, "answer", draft)
            if not draft.gone and repetition(w.ids) > DULL:
                draft.gone = "answer that repeats itself"
            if not draft.gone:
                draft.messages.append({"role": "assistant", "content": text})

    def _goes_on(self, ids: list[int]) -> bool:
        if time.monotonic() > self._until:
            return False
        return len(ids) < LAST or repetition(ids[-LAST:]) < REPEATED

    def _keep_short(self, drafts: list[Draft], prompts: list[list[int]]) -> None:
        for draft, prompt in zip(drafts, prompts):
            if len(prompt) + LAST > self.model.context:
                draft.gone = "longer than the context"

    def _opening(self, draft: Draft) -> list[int]:
        """The tokens that its next message begins with: none but in the first one."""
        assert self.model.tokenizer is not None
        text = "" if draft.messages else draft.opening
        return list(self.model.tokenizer(text, add_special_tokens=False).input_ids) if text else []

    def _text(self, w: Written, what: str, draft: Draft, begun: Sequence[int] = ()) -> str:
        """The text of a turn after its first tokens; says in the draft where it cannot be kept."""
        assert self.model.tokenizer is not None
        ids = [*begun, *(w.ids[:-1] if w.ended else w.ids)]
        text = str(self.model.tokenizer.decode(ids)).strip()
        if w.stopped:
            looped = time.monotonic() <= self._until
            draft.gone = f"{what} in a loop" if looped else f"{what} out of time"
        elif not w.ended:
            draft.gone = f"{what} cut off"
        elif not text:
            draft.gone = f"empty {what}"
        elif any(token in text for token in self._special):
            draft.gone = f"{what} with a control token"
        else:
            try:
                check_text(text)
            except UserError:
                draft.gone = f"{what} with control characters"
        return text


def write_conversations(
    model: Model, folder: Path, settings: DataSettings, tell: Progress = no_progress
) -> Writer:
    """Write conversations into a folder until there are enough, or time is up.

    `conversations.jsonl` to train on and `held_out.jsonl` have lines with `messages`; `draws.jsonl`
    says what came of each draw, and README.md is the card. A run that was killed goes on where it
    was: after its last whole draw, to the same conversations. Raises UserError, and Cancelled where
    `tell` does.
    """
    writer = Writer(model, folder, settings)
    began = time.monotonic()
    with tqdm(
        total=settings.conversations,
        initial=writer.kept,
        desc="data",
        unit="conversation",
        dynamic_ncols=True,
        disable=tell is not no_progress,
    ) as bar:
        while writer.kept < settings.conversations:
            spent = time.monotonic() - began
            if settings.seconds is not None and spent > settings.seconds and writer.draws:
                break
            until = math.inf if settings.seconds is None else began + settings.seconds
            writer.draw(tell, bar, until)
            if not writer.kept and writer.sum("drawn") >= HOPELESS:
                raise UserError(
                    f"{model.name} wrote {writer.sum('drawn')} conversations "
                    f"of which none can be kept ({_listed(writer.dropped)}); it needs to be a chat "
                    "model, or --data FILE has to bring conversations"
                )
    (folder / CARD).write_text(card(writer), encoding="utf-8")
    return writer


def card(writer: Writer) -> str:
    """Return what a reader should know of a folder of conversations, as Markdown."""
    settings, model = writer.settings, writer.model
    held = len(kept_lines(writer.folder / HELD_OUT))
    drawn = writer.sum("drawn")
    tokens, seconds = writer.sum("tokens"), max(writer.sum("seconds"), 0.1)
    opened = ""
    if settings.openings:
        opened = f" Each first message begins with one of {len(settings.openings)} given openings."
    reasons = "".join(f"| {reason} | {n:,} |\n" for reason, n in writer.dropped.most_common())
    return (
        f"# Conversations that {model.name} wrote itself\n\n"
        f"The model ({model.dtype}, quantization {model.quantization}) wrote both sides after its "
        "chat template (Magpie, arXiv 2406.08464): the user's messages drawn at temperature "
        f"{settings.temperature:g} from the {TOP_K} likeliest tokens, its answers at "
        f"{settings.answer_temperature:g} (0 is greedy).{opened}\n\n"
        f"    python -m dmtd_demo train data --model {model.name} --conversations "
        f"{settings.conversations} \\\n        --batch {settings.batch} --turns {settings.turns} "
        f"--temperature {settings.temperature:g} --seed {settings.seed}"
        f"{' --openings FILE' if opened else ''}\n\n"
        f"- `{CONVERSATIONS}`: {writer.kept - held:,} conversations to train on, for `--data`\n"
        f"- `{HELD_OUT}`: {held:,}, kept aside by a hash of their content\n"
        f"- {drawn:,} were drawn, {tokens:,.0f} tokens in {seconds:,.0f} seconds, "
        f"{tokens / seconds:,.0f} tokens/s\n\n"
        "| left out, or shortened | conversations |\n|---|---|\n"
        f"{reasons}\n"
        "Nobody has read them: what the model makes up, and what it has from its own training "
        "data, is in them.\n"
    )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in counts.most_common())


def _plain(messages: Sequence[Message]) -> str:
    """The first message of the user, so that the same request in other case is a duplicate."""
    return " ".join(messages[0]["content"].lower().split())


def _append(path: Path, values: Sequence[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(value) + "\n" for value in values))

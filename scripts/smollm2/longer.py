"""More training for the shipped MTP heads, on a CPU: fed_back or mtp_heads.

    python scripts/smollm2/longer.py states runs/longer &
    python scripts/smollm2/longer.py train runs/longer --heads fed_back --minutes 90
    python scripts/smollm2/longer.py judge runs/longer --heads fed_back
    python scripts/smollm2/longer.py bundle runs/longer assets/smollm2-135m --heads fed_back

Texts that somebody packed into the run's folder (`everyday.py --pack runs/longer/mine.npz`) are
learned from beside the shipped ones, once their states are there (`states --texts mine`).

On one GPU `train.py` gave all heads 33 seconds: 327 updates of large batches. Here the frozen
model's hidden states are computed once, text by text, and read again by every epoch; an update
takes a few hundred positions, and its softmax ranges over the frequent tokens and a sample of the
others (Jean et al., arXiv 1412.2007, section 3). `states` may still be running while `train` reads
what is there. Both go on where they were if they are run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import weights
from bundle import NAME
from corpus import Batch, Batches, Corpus
from heads import CHUNK, FALL, FeedBackHead, K
from model import Stack

from dmtd_demo.models.addons import CARD, MTPHeads
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.fetch import at_hand

FOLDER = ROOT / "assets" / "smollm2-135m"
ROOM = 512
# texts whose states are computed between two marks of how far it is
BLOCK = 512
# seconds to wait for the first of them
MOST_WAITED = 600
# entries of the softmax: always, and drawn from the other frequent ones
ALWAYS, DRAWN, FREQUENT = 2048, 1024, 16384
# drafts in a row that an update goes for, where it does not go K deep
SHALLOW = 2
# drafts in a row that are judged, by the heads: training goes K deep
JUDGED = {"fed_back": 8, "mtp_heads": K}
# the shipped texts: conversations, and beside them the answers to everyday requests, put together
# from lists and written by the model itself
TEXTS = ("conversations", "everyday", "opened")


def opened(
    run: Path | None = None, device: torch.device = torch.device("cpu")
) -> tuple[Stack, dict[str, Corpus]]:
    """The model in bfloat16, and texts by name: of TEXTS those that are there, and the packed ones
    (*.npz) of a run's folder.
    """
    entry = CATALOG[NAME]
    path = at_hand(entry.source, entry.archive)
    if path is None:
        sys.exit(f"run `python -m dmtd_demo get {NAME}` first")
    made, _ = weights.load(path, torch.bfloat16, device)
    files = {name: FOLDER / f"{name}.npz" for name in TEXTS}
    files |= {file.stem: file for file in (sorted(run.glob("*.npz")) if run else ())}
    there = {name: Corpus.load(file) for name, file in files.items() if file.exists()}
    return Stack(made, ROOM + 16), there


def order(corpus: Corpus, first: int) -> np.ndarray:
    """The texts to learn from, in the order in which their states are computed.

    first: where in it to begin.
    """
    texts = np.flatnonzero(~corpus.held & (corpus.lengths <= ROOM))
    return np.roll(np.random.default_rng(0).permutation(texts), -first)


class States:
    """Hidden states after the final norm of the texts to learn from, on disk, end to end.

    name: of the texts. first: where in their order it begins. positions: of a batch.
    """

    def __init__(
        self, folder: Path, name: str, corpus: Corpus, stack: Stack, first: int, positions: int
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        hidden, self.device = stack.shape.hidden, stack.weights.embedding.device
        self.batches = Batches(corpus, False, positions, self.device, ROOM)
        self.name = name
        self.texts, self.mark = order(corpus, first), folder / f"{name}.done"
        self.starts = np.concatenate([[0], np.cumsum(corpus.lengths[self.texts])])
        # whose states they are: of other texts, or in another order, they would be others'
        of = hashlib.sha256(corpus.tokens.tobytes() + self.texts.tobytes()).hexdigest()
        told = folder / f"{name}.of"
        if told.exists() and told.read_text() != of:
            sys.exit(f"{folder} has states of other {name}, or in another order (--first)")
        told.write_text(of)
        size = (int(self.starts[-1]), hidden)
        file = str(folder / f"{name}.bin")
        values = torch.from_file(file, True, size[0] * hidden, dtype=torch.bfloat16)
        self.values = values.view(size)

    @property
    def done(self) -> int:
        """How many of the texts are there."""
        return int(self.mark.read_text()) if self.mark.exists() else 0

    def lots(self, random: np.random.Generator) -> list[tuple[States, np.ndarray, int]]:
        """What is there, as places of texts of one width, and that width."""
        widths = self.batches.corpus.lengths[self.texts[: self.done]]
        widths = -(-widths // Batches.STEP) * Batches.STEP
        found = []
        for n in np.unique(widths):
            rows = max(1, self.batches.positions // int(n))
            places = random.permutation(np.flatnonzero(widths == n))
            whole = len(places) // rows * rows
            found += [(self, lot, int(n)) for lot in places[:whole].reshape(-1, rows)]
        return found

    def read(self, places: np.ndarray, n: int) -> tuple[Batch, Tensor]:
        """A batch and its hidden states, [rows, n, hidden]."""
        batch = self.batches.batch(self.texts[places], n)
        h = torch.zeros(len(places), n, self.values.shape[1], dtype=torch.bfloat16)
        for row, place in zip(h, places):
            at, to = self.starts[place : place + 2]
            row[: to - at] = self.values[at:to]
        return batch, h.to(self.device)

    def compute(self, stack: Stack) -> None:
        """All that are missing, those of a block by like lengths together."""
        began, first, batches = time.monotonic(), self.done, self.batches
        lengths = batches.corpus.lengths
        for start in range(first, len(self.texts), BLOCK):
            places = np.arange(start, min(start + BLOCK, len(self.texts)))
            widths = -(-lengths[self.texts[places]] // Batches.STEP) * Batches.STEP
            for n in np.unique(widths):
                lot = places[widths == n]
                # so many rows always: in bfloat16 a new shape costs more than it
                rows = max(1, 2048 // int(n))
                for i in range(0, len(lot), rows):
                    some = lot[i : i + rows]
                    padded = np.resize(some, rows)
                    h = stack.hidden(batches.batch(self.texts[padded], int(n)).ids).cpu()
                    for row, place in zip(h, some):
                        at, to = self.starts[place : place + 2]
                        self.values[at:to] = row[: to - at]
            self.mark.write_text(str(int(places[-1]) + 1))
            seconds = time.monotonic() - began
            tokens = self.starts[places[-1] + 1] - self.starts[first]
            said = f"{places[-1] + 1} of {len(self.texts)} texts, {tokens / seconds:.0f} tokens/s"
            print(said, flush=True)


class Training:
    """The heads of one kind, and what an update reads."""

    def __init__(
        self, folder: Path, stack: Stack, corpora: dict[str, Corpus], options: Any
    ) -> None:
        self.folder, self.stack, self.options, self.kind = folder, stack, options, options.heads
        self.device = device = stack.weights.embedding.device
        self.states = [
            States(folder, name, corpus, stack, options.begins[name], options.positions)
            for name, corpus in corpora.items()
        ]
        self.judged = {
            name: Batches(corpus, True, 4096, device, ROOM) for name, corpus in corpora.items()
        }
        tokens = np.concatenate([corpus.tokens for corpus in corpora.values()])
        counts = np.bincount(tokens, minlength=stack.shape.vocabulary)
        frequent = torch.from_numpy(np.argsort(-counts, kind="stable")[:FREQUENT].copy())
        frequent = frequent.to(device)
        self.always, self.others = frequent[:ALWAYS], frequent[ALWAYS:]
        fed = self.kind == "fed_back"
        self.head = (FeedBackHead(stack) if fed else MTPHeads(stack.shape.hidden, K)).to(device)
        self.updates = self.seen = self.waited = 0
        self.spent = 0.0
        self.kept = folder / f"{self.kind}.pt"
        rate = options.rate
        if options.optimizer == "adamw":
            self.optimizers: list[torch.optim.Optimizer] = [
                torch.optim.AdamW(
                    self.head.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01
                )
            ]
        else:
            # PyTorch's own, from 2.9 on: it works in bfloat16, which GPUs and CPUs with instructions
            # for it multiply fast; dmtd_demo/training/muon.py is for those without
            some = [*self.head.parameters()]
            self.optimizers = [
                torch.optim.Muon(
                    [p for p in some if p.ndim == 2],
                    lr=rate,
                    weight_decay=0.01,
                    adjust_lr_fn="match_rms_adamw",
                ),
                torch.optim.AdamW(
                    [p for p in some if p.ndim < 2], lr=rate, betas=(0.9, 0.98), weight_decay=0.01
                ),
            ]
        if self.kept.exists():
            state = torch.load(self.kept, weights_only=True, map_location=device)
            self.head.load_state_dict(state["head"])
            if options.what == "train":
                if state.get("optimizer") != options.optimizer:
                    sys.exit(f"{self.kept} is not of a training by {options.optimizer}")
                for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                    optimizer.load_state_dict(kept)
            self.updates, self.seen, self.spent = state["updates"], state["seen"], state["spent"]
        else:
            named = load_file(FOLDER / f"{self.kind}.safetensors")
            self.head.load_state_dict({n.removeprefix("mtp."): t for n, t in named.items()})
        self.random = np.random.default_rng(self.updates)

    def guesses(self, ids: Tensor, h: Tensor, index: Tensor, depth: int) -> list[Tensor]:
        """What the LM head is to read for each depth, at the places of `index` in [rows x n]."""
        if isinstance(self.head, FeedBackHead):
            states = self.head(self.stack, ids, h, depth)
            return [state.flatten(0, 1)[index] for state in states]
        with torch.autocast(h.device.type, dtype=h.dtype):
            return list(self.head(h.flatten(0, 1)[index]).unbind(1))

    def save(self) -> None:
        state: dict[str, Any] = {
            "head": self.head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        state |= {"optimizer": self.options.optimizer}
        state |= {"updates": self.updates, "seen": self.seen, "spent": self.spent}
        part = self.kept.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.kept)

    def lots(self) -> Iterator[tuple[States, np.ndarray, int]]:
        """Epochs over the texts whose states are there."""
        while True:
            ready = sum(states.done for states in self.states)
            found = [
                lot
                for states in self.states
                for _ in range(self.options.often.get(states.name, 1))
                for lot in states.lots(self.random)
            ]
            if not found and ready:
                sys.exit(f"the texts of {self.folder} whose states are there fill no batch")
            if not found:
                # `states` may have begun beside this
                if self.waited > MOST_WAITED:
                    sys.exit(f"{self.folder} has no states to learn from: run `states` first")
                self.waited += 5
                time.sleep(5)
            for i in self.random.permutation(len(found)):
                yield found[i]
                # texts have come meanwhile: an epoch over more of them
                if sum(states.done for states in self.states) > 1.3 * ready:
                    break

    def update(self, lot: tuple[States, np.ndarray, int], share: float) -> float:
        """One step on half of the answers' positions; share: of the whole time."""
        warm = min(1.0, (self.updates + 1) / 100)
        factor = warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.options.rate * factor
        states, places, n = lot
        batch, h = states.read(places, n)
        device = self.device
        rows, at = len(places), torch.arange(n, device=device)
        answer = (at >= batch.prompts[:, None] - 1) & (at < batch.lengths[:, None] - 1)
        chance = torch.rand(rows * n, device=device) + (~answer).flatten() * 2
        index = chance.topk(self.options.learned, largest=False).indices
        row, column = index // n, index % n
        wanted = F.pad(batch.ids, (0, K + 2))
        drawn = self.others[torch.randperm(len(self.others), device=device)[:DRAWN]]
        entries = torch.cat([self.always, drawn])
        raised = torch.zeros(len(entries), device=device)
        raised[ALWAYS:] = math.log(len(self.others) / DRAWN)
        table = self.stack.weights.embedding
        among = table[entries]
        depth = K if self.random.random() < self.options.deep else SHALLOW
        guesses = self.guesses(batch.ids, h, index, depth)
        inside = answer.flatten()[index]
        total, losses = torch.zeros((), device=device), []
        for i in range(1, depth + 1):
            goal = wanted[row, column + 1 + i]
            counts = inside & (column + 1 + i < batch.lengths[row])
            own, same = table[goal], entries == goal[:, None]
            state = guesses[i - 1].to(torch.bfloat16)
            logits = (state @ among.T).float() + raised
            logits = logits.masked_fill(same, -math.inf)
            mine = (state * own).sum(-1).float()
            whole = torch.logaddexp(logits.logsumexp(-1), mine)
            loss = ((whole - mine) * counts).sum() / counts.sum().clamp(min=1)
            total = total + FALL ** (i - 1) * loss
            losses.append(loss.detach())
        self.head.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.updates += 1
        self.seen += int(inside.sum())
        return torch.stack(losses).mean().item()

    @torch.no_grad()
    def figures(self, batches: list[Batch]) -> dict[str, Any]:
        """Accuracy by depth and the mean length of the right prefix, K and JUDGED deep.

        At the positions of answers that have JUDGED + 1 more tokens, over the whole
        vocabulary, the draft before being the text's own token. likely: by K and threshold, tokens
        per full pass and the share right of the drafts taken along, where drafts are taken as long
        as each is held that probable (`mtp-native`'s rule).
        """
        found, sure, deep = [], [], JUDGED[self.kind]
        for batch in batches:
            h = self.stack.hidden(batch.ids)
            n = batch.ids.shape[1]
            at = torch.arange(n, device=self.device)
            answer = at >= batch.prompts[:, None] - 1
            inside = answer & (at < batch.lengths[:, None] - 1 - deep)
            index = inside.flatten().nonzero()[:, 0]
            row, column = index // n, index % n
            right, chances = [], []
            for d, state in enumerate(self.guesses(batch.ids, h, index, deep), 1):
                parts = state.to(h.dtype).split(CHUNK)
                best = [self.stack.logits(part).float().softmax(-1).max(-1) for part in parts]
                guess = torch.cat([indices for _, indices in best])
                right.append(guess == batch.ids[row, column + 1 + d])
                chances.append(torch.cat([values for values, _ in best]))
            found.append(torch.stack(right, -1))
            sure.append(torch.stack(chances, -1))
        all_right = torch.cat(found).float()
        lengths = all_right.cumprod(-1)
        likely: dict[str, Any] = {}
        for k in (1, 2, K):
            for threshold in (0.5, 0.7, 0.8, 0.9, 0.93, 0.95, 0.97):
                taken = (torch.cat(sure)[:, :k] >= threshold).float().cumprod(-1)
                good = (taken * lengths[:, :k]).sum() / taken.sum().clamp(min=1)
                whole = 1 + taken.sum(-1).mean().item()
                likely.setdefault(f"k={k}", {})[threshold] = [
                    round(whole, 4),
                    round(good.item(), 4),
                ]
        return {
            "held_out_positions": len(all_right),
            "accuracy": [round(x, 4) for x in all_right.mean(0).tolist()[:K]],
            "prefix": round(lengths[:, :K].sum(-1).mean().item(), 4),
            f"prefix_of_{deep}": round(lengths.sum(-1).mean().item(), 4),
            "likely": likely,
        }

    def tell(self, log: Path, positions: int, **more: Any) -> None:
        """Figures on held-out texts, into the log."""
        facts = {"updates": self.updates, "answer_positions": self.seen, **more}
        facts |= {"heads": self.kind, "seconds": round(self.spent)}
        facts["texts"] = sum(states.done for states in self.states)
        for name, batches in self.judged.items():
            facts[name] = self.figures(batches.some(positions))
        line = json.dumps(facts)
        with log.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def run(self) -> None:
        seconds, log = 60 * self.options.minutes, self.folder / "log.jsonl"
        told = saved = time.monotonic()
        if not self.updates:
            self.tell(log, self.options.judged)
        losses: list[float] = []
        for lot in self.lots():
            began = time.monotonic()
            if self.spent >= seconds:
                break
            losses.append(self.update(lot, self.spent / seconds))
            now = time.monotonic()
            self.spent += now - began
            if now - told > 60 * self.options.every:
                speed = len(losses) * self.options.learned / (now - told)
                loss = round(sum(losses) / len(losses), 4)
                self.tell(log, self.options.judged, loss=loss, per_second=round(speed))
                losses, told = [], time.monotonic()
            if now - saved > 120:
                self.save()
                saved = now
        self.save()
        self.tell(log, self.options.judged_last, last=True)


def bundle(training: Training, folder: Path) -> None:
    """The heads into a folder of add-ons, with the figures of the last line of the log."""
    kind = training.kind
    log = [json.loads(line) for line in (training.folder / "log.jsonl").read_text().splitlines()]
    log = [line for line in log if line["heads"] == kind]
    if not log or not log[-1].pop("last", False):
        sys.exit(f"{training.folder} has no training of {kind} that came to its end")
    prefix = "mtp." if kind == "fed_back" else ""
    named = {
        f"{prefix}{name}": p.detach().bfloat16().cpu().contiguous()
        for name, p in training.head.named_parameters()
    }
    file = folder / f"{kind}.safetensors"
    save_file(named, file)
    file.chmod(0o644)
    with (folder / "log.jsonl").open("a") as kept:
        kept.write("".join(json.dumps({"phase": "longer", **line}) + "\n" for line in log))
    card = json.loads((folder / CARD).read_text())
    facts = {f"last_{name}": log[-1][name] for name in ("updates", "answer_positions")}
    judged = {name: log[-1][name] for name in training.judged if name in log[-1]}
    for name in ("held_out_positions", "accuracy", "prefix"):
        facts[name] = judged["conversations"][name]
        for text in (x for x in TEXTS[1:] if x in judged):
            facts[f"{text}_{name}"] = judged[text][name]
    card["addons"][kind] |= facts
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("states", "train", "judge", "bundle"))
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--heads", choices=JUDGED, default="fed_back")
    parser.add_argument("--texts", default=TEXTS[0], help="whose states, by their name")
    parser.add_argument(
        "--often",
        nargs="*",
        default=[],
        metavar="TEXTS=N",
        help="texts that are read so often in an epoch, such as opened=2",
    )
    parser.add_argument(
        "--first", type=int, default=0, help="where in the order of the conversations to begin"
    )
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--positions", type=int, default=1024, help="of a batch, prompts and all")
    parser.add_argument("--learned", type=int, default=640, help="positions of a batch with a loss")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument(
        "--deep",
        type=float,
        default=1.0,
        help=f"share of the updates that go {K} drafts deep; the others {SHALLOW}",
    )
    parser.add_argument("--every", type=float, default=10.0, help="minutes between two figures")
    parser.add_argument("--judged", type=int, default=8192, help="held-out positions of each")
    parser.add_argument("--judged-last", type=int, default=65536)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    # of every kind of texts: a run must say the same in each of its commands
    stack, corpora = opened(options.run, torch.device(options.device))
    options.begins = dict.fromkeys(corpora, 0) | {TEXTS[0]: options.first}
    options.often = {name: int(n) for name, _, n in (each.partition("=") for each in options.often)}
    if options.what == "states":
        corpus = corpora[options.texts]
        begins = options.begins[options.texts]
        States(options.run, options.texts, corpus, stack, begins, 2048).compute(stack)
        return
    training = Training(options.run, stack, corpora, options)
    if options.what == "train":
        training.run()
    elif options.what == "judge":
        training.tell(options.run / "log.jsonl", options.judged_last, last=True)
    else:
        bundle(training, options.folder)


if __name__ == "__main__":
    main()

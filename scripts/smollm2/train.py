"""Everything for SmolLM2-135M-Instruct on one GPU in minutes: data, DMTD layers, heads, figures.

    python scripts/smollm2/train.py --smoke --out runs/smoke
    python scripts/smollm2/train.py --weights SmolLM2-135M-Instruct.Q4_1.gguf --seconds 420 \\
        --out runs/smollm2

`--weights` may name a file that lies there in pieces, FILE.part0, FILE.part1 … A phase that fails
is logged, and the others go on. Every figure goes into log.jsonl as soon as it is there.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tarfile
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import layers as late
import model
import weights
from corpus import Batches, Corpus, Writer, write
from heads import HeadTrainer, train_small
from layers import Split, Trainer, Way, compressed, judge, own_text, rounded
from model import Stack

MIB = 1 << 20
TAUS = (2, 3, 4)


@dataclass(frozen=True)
class Plan:
    """Sizes, and each phase's share of the seconds. steps: at most so many updates of each run."""

    rows: int = 3072
    room: int = 512
    positions: int = 32768
    sweep_positions: int = 16384
    heads_positions: int = 16384
    wanted: int = 24_000_000
    kept: int = 3_500_000
    judged: int = 65536
    own_prompts: int = 160
    own_longest: int = 80
    own_tokens: int = 128
    head_vocabulary: int = 16384
    steps: int | None = None
    data_steps: int | None = None
    # The rest is for loading, saving and the last figures.
    data: float = 0.18
    sweep: float = 0.12
    heads: float = 0.10
    main: float = 0.38
    second: float = 0.07


class Log:
    """JSON lines, flushed one by one, and short lines on the terminal."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "log.jsonl").open("a")
        self.began = time.monotonic()

    def __call__(self, phase: str, facts: dict[str, Any]) -> None:
        at = round(time.monotonic() - self.began, 1)
        line = json.dumps({"phase": phase, "at": at, **facts})
        self.file.write(line + "\n")
        self.file.flush()
        print(line[:700], flush=True)

    def of(self, phase: str) -> Callable[[dict[str, Any]], None]:
        return lambda facts: self(phase, facts)


def synthetic(shape: weights.Shape, texts: int, room: int) -> Corpus:
    """Texts of random tokens, where random weights wrote none."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(room // 4, room, texts)
    prompts = rng.integers(room // 16, room // 6, texts)
    tokens = rng.integers(0, shape.vocabulary, lengths.sum()).astype(np.uint16)
    return Corpus(
        tokens,
        np.cumsum(lengths) - lengths,
        lengths,
        prompts,
        rng.random(texts) < 0.1,
        np.zeros(texts, dtype=np.int64),
    )


class Session:
    """One run: what the phases hand on to each other."""

    def __init__(self, options: argparse.Namespace, plan: Plan, log: Log) -> None:
        self.options, self.plan, self.log = options, plan, log
        self.out = Path(options.out)
        self.device = torch.device(options.device)
        self.deadline = log.began + options.seconds
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        if options.smoke:
            tiny = weights.Shape(
                layers=16, hidden=192, heads=3, kv_heads=1, ffn=256, vocabulary=4096
            )
            shape = tiny if self.device.type == "cpu" else weights.Shape()
            made, self.tokens = weights.random_weights(shape, dtype, self.device), None
        else:
            made, self.tokens = weights.load(Path(options.weights), dtype, self.device)
        self.stack = Stack(made, plan.room + 512)
        self.corpus: Corpus | None = None
        self.best: Way | None = None
        self.trained: list[Trainer] = []
        self.sizes = 0

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def seconds(self, share: float) -> float:
        """A phase's time: its share, or less where earlier phases took more than theirs."""
        return max(1.0, min(share * self.options.seconds, self.left() - 4.0))

    def phase(self, name: str, run: Callable[[], None]) -> None:
        if self.left() < 3.0 and not self.options.smoke:
            self.log(name, {"skipped": "no time left"})
            return
        began = time.monotonic()
        try:
            run()
        except Exception as error:
            traceback.print_exc()
            self.log(name, {"failed": f"{type(error).__name__}: {error}"[:600]})
        facts: dict[str, Any] = {"phase_seconds": round(time.monotonic() - began, 1)}
        if self.device.type == "cuda":
            facts["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.log(name, facts)

    # -- A. data ---------------------------------------------------------------------------------

    def data(self) -> None:
        plan, log = self.plan, self.log.of("data")
        if self.options.data:
            self.corpus = Corpus.load(Path(self.options.data))
            log({"texts": len(self.corpus.lengths), "answer_tokens": self.corpus.answer_tokens})
            return
        writer = Writer(
            self.stack, self.tokens, plan.rows, plan.room, chunk=128 if self.options.smoke else 512
        )
        self._check_attention(writer)
        try:
            found = write(
                writer,
                time.monotonic() + self.seconds(plan.data),
                log,
                plan.wanted,
                plan.data_steps,
            )
        except ValueError:
            # random weights end no text
            found = None
        if found is None or len(found.lengths) < 20:
            if not self.options.smoke:
                raise RuntimeError("the model wrote fewer than 20 texts that count")
            found = synthetic(self.stack.shape, 2000, plan.room)
        self.corpus = found
        path, most = self.out / "data.npz", plan.kept
        found.save(path, most)
        while path.stat().st_size > 14 * MIB:
            most = int(most * 13.5 * MIB / path.stat().st_size)
            found.save(path, most)
        self.sizes += path.stat().st_size
        sample = [found.tokens[s : s + n].tolist() for s, n in zip(found.starts[:3], found.lengths)]
        log(
            {
                "data_mib": round(path.stat().st_size / MIB, 2),
                "kept": most,
                "median_answer": float(np.median(found.lengths - found.prompts)),
                "samples": [self.tokens.decode(ids) for ids in sample] if self.tokens else [],
            }
        )

    def _check_attention(self, writer: Writer) -> None:
        """The fast decode attention against the plain one; falls back to the plain one."""
        if writer.attention is model.decode_plain:
            return
        shape, device = self.stack.shape, self.device
        q = torch.randn(64, shape.heads, shape.head_dim, device=device).to(torch.bfloat16)
        k, v = (
            torch.randn(64, shape.kv_heads, 200, shape.head_dim, device=device).to(torch.bfloat16)
            for _ in range(2)
        )
        pos = torch.randint(0, 200, (64,), device=device)
        try:
            plain = model.decode_plain(q, k, v, pos).float()
            error = (model.decode_fast(q, k, v, pos).float() - plain).norm() / plain.norm()
            self.log("data", {"attention_error": error.item()})
            good = error.item() < 1e-2
        except Exception as error:
            self.log("data", {"attention_failed": str(error)[:300]})
            good = False
        if not good:
            writer.attention = model.decode_plain

    # -- B. layers -------------------------------------------------------------------------------

    def _batches(self, positions: int, held: bool = False) -> Batches:
        return Batches(self.corpus, held, positions, self.device, self.plan.room)

    def _judged(self, positions: int) -> list[Any]:
        return self._batches(self.plan.sweep_positions, True).some(positions)

    def _train(
        self,
        way: Way,
        seconds: float,
        phase: str,
        every: float,
        judged: list[Any],
        taus: tuple[int, ...],
        kept: str = "",
    ) -> tuple[Trainer, dict[str, Any]]:
        """kept: the name under which the layers are written at each figure, so that a run that is
        cut off leaves its last ones."""
        trainer = Trainer(self.stack, way, self._batches(way.positions))

        def tell(facts: dict[str, Any]) -> None:
            self.log(phase, facts)
            if kept and "last" not in facts:
                self._write(trainer.adapted.deltas(), 4, kept, way)

        return trainer, trainer.run(seconds, tell, judged, every, taus, self.plan.steps)

    def _check_difference(self) -> None:
        """The fast gradient of the distance against the plain one, and which is used."""
        late.FAST = False
        if late.difference_fast is None or self.device.type != "cuda":
            return
        try:
            size = (300, self.stack.shape.vocabulary)
            ours, own = (3 * torch.randn(size, device=self.device) for _ in range(2))
            ours, own = ours.to(torch.bfloat16), own.to(torch.bfloat16)
            weight = torch.rand(300, device=self.device)
            plain = late._against(ours, own, weight, False, False)[0].float()
            error = (late.difference_fast(ours, own, weight).float() - plain).norm() / plain.norm()
            late.FAST = error.item() < 1e-2
            self.log("sweep", {"difference_error": error.item(), "used": late.FAST})
        except Exception as error:
            self.log("sweep", {"difference_failed": str(error)[:300]})

    def sweep(self) -> None:
        self._check_difference()
        judged = self._judged(self.plan.judged // 2)
        start = Way(Split.parse(self.options.middle), positions=self.plan.sweep_positions)
        first = [
            start,
            replace(start, optimizer="muon", rate=2e-3),
            replace(start, loss="ce"),
            replace(start, rank=128, rate=2e-3),
            replace(start, shared=True, rate=5e-4),
        ]
        seconds = self.seconds(self.plan.sweep) / (len(first) + len(self.options.splits))
        scores: dict[Way, float] = {}

        def attempt(way: Way) -> None:
            try:
                _, found = self._train(way, seconds - 0.6, "sweep", 1e9, judged, (1, *TAUS))
                scores[way] = found["C2"]["late"]
            except torch.OutOfMemoryError as error:
                self.log("sweep", {"way": way.name, "failed": str(error)[:200]})
                torch.cuda.empty_cache()

        for way in first:
            attempt(way)
        recipe = max((w for w in first if w in scores and not w.shared), key=scores.__getitem__)
        # Whole matrices have more room when the run is long: LoRA must be clearly better.
        if recipe.rank:
            full = max((w for w in first[:3] if w in scores), key=scores.__getitem__)
            recipe = recipe if scores[recipe] > scores[full] + 0.02 else full
        for text in self.options.splits:
            attempt(replace(recipe, split=Split.parse(text)))
        tried = [w for w in scores if replace(w, split=start.split) == recipe]
        tried.sort(key=lambda w: (w.split.early + w.split.late, -scores[w]))
        enough = [w for w in tried if scores[w] >= self.options.enough]
        self.best = enough[0] if enough else max(tried, key=scores.__getitem__)
        self.log(
            "sweep",
            {
                "recipe": recipe.name,
                "chosen": self.best.name,
                "late_C2": {w.name: s for w, s in scores.items()},
            },
        )

    def _way(self) -> Way:
        way = self.best or Way(Split.parse(self.options.middle))
        if self.options.main:
            way = replace(way, split=Split.parse(self.options.main))
        return replace(way, positions=self.plan.positions)

    def main(self) -> None:
        way, judged = self._way(), self._judged(self.plan.judged)
        seconds = self.seconds(self.plan.main)
        taus = (1, 2, 3, 4, 6)
        trainer, _ = self._train(way, seconds, "main", seconds / 9, judged, taus, "layers")
        self.trained.append(trainer)
        self._ship(trainer, judged, "layers")

    def second(self) -> None:
        """The paper's way on the chosen split, for the comparison at equal positions."""
        way = replace(
            self._way(),
            shared=True,
            rate=5e-4 if self._way().optimizer == "adamw" else self._way().rate * 0.5,
        )
        seconds = self.seconds(self.plan.second)
        trainer, _ = self._train(
            way, seconds, "second", seconds / 3, self._judged(self.plan.judged), (1, 2, 3, 4, 6)
        )
        self.trained.append(trainer)
        self._ship(trainer, [], "second")

    def _ship(self, trainer: Trainer, judged: list[Any], name: str) -> None:
        """The differences to the own matrices, as levels and steps, in files under 14 MiB."""
        deltas, bits = trainer.adapted.deltas(), 4
        self._write(deltas, 4, name, trainer.way)
        if not judged:
            return
        plain = judge(
            self.stack,
            trainer.adapted.layers(),
            trainer.way.split,
            trainer.way.shared,
            judged,
            TAUS,
        )
        found = compressed(trainer, judged, TAUS, (64, 128) if self.left() > 20 else ())
        lost = plain["C2"]["late"] - found["int4, groups of 32"]["C2"]["late"]
        bits = 8 if lost > 0.003 and self._size(deltas, 8) < 39 * MIB else 4
        self.log(name, {"plain": plain, "compressed": found, "bits": bits})
        if bits == 8:
            self._write(deltas, 8, name, trainer.way)

    @staticmethod
    def _size(deltas: dict[Any, Tensor], bits: int) -> int:
        return sum(d.numel() for d in deltas.values()) * (bits * 32 + 16) // (8 * 32)

    def _write(self, deltas: dict[tuple[int, str], Tensor], bits: int, name: str, way: Way) -> None:
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        first = self.stack.shape.layers - way.split.late
        for (i, part), delta in deltas.items():
            levels, step = rounded(delta, bits)
            if bits == 4:
                levels = (levels + 8).to(torch.uint8)
                levels = levels[:, ::2] | levels[:, 1::2] << 4
            tensors[f"layers.{first + i}.{part}.levels"] = levels.cpu().contiguous()
            tensors[f"layers.{first + i}.{part}.step"] = step.cpu().contiguous()
        old = list(self.out.glob(f"{name}-*.safetensors"))
        sizes = self.sizes - sum(path.stat().st_size for path in old)
        files: list[dict[str, Tensor]] = [{}]
        room = 14 * MIB
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        if sizes + total > 47 * MIB and name != "layers":
            self.log(name, {"not written": f"{total / MIB:.1f} MiB are over what may come back"})
            return
        share = total / -(-total // room)
        for key, t in tensors.items():
            used = sum(x.numel() * x.element_size() for x in files[-1].values())
            whole = key.endswith(".levels")
            if (
                whole
                and files[-1]
                and (used >= share or used + t.numel() * t.element_size() > room)
            ):
                files.append({})
            files[-1][key] = t
        facts = {
            "way": way.name,
            "split": str(way.split),
            "shared": str(way.shared),
            "bits": str(bits),
            "group": "32",
            "base": "the file's values in bfloat16",
            "meaning": "W = base + level * step; 4 bits: level + 8, even columns low",
        }
        for i, part in enumerate(files):
            save_file(part, self.out / f"{name}-{i}.part", metadata=facts)
        for path in old:
            path.unlink()
        for path in self.out.glob(f"{name}-*.part"):
            sizes += path.stat().st_size
            path.rename(path.with_suffix(".safetensors"))
        self.sizes = sizes

    # -- C. heads --------------------------------------------------------------------------------

    def heads(self) -> None:
        from dmtd_demo.models.addons import save_addon

        plan, log = self.plan, self.log.of("heads")
        counts = np.bincount(self.corpus.tokens, minlength=self.stack.shape.vocabulary)
        frequent = np.argsort(-counts, kind="stable")[: plan.head_vocabulary]
        log({"vocabulary": len(frequent), "covers": float(counts[frequent].sum() / counts.sum())})
        trainer = HeadTrainer(
            self.stack,
            self._batches(plan.heads_positions),
            torch.from_numpy(np.sort(frequent)).to(self.device),
        )
        judged, seconds = self._judged(plan.judged), self.seconds(plan.heads)
        figures = trainer.run(seconds * 0.85, log, judged, seconds / 6, plan.steps)
        base, hidden = "SmolLM2-135M-Instruct", self.stack.shape.hidden
        folder = Path(tempfile.mkdtemp()) / "addons"
        save_addon(folder, "mtp_heads", trainer.medusa, base, hidden, **figures["medusa"])
        save_addon(folder, "head0", trainer.head0, base, hidden, **figures["head0"])
        self._feed_back(trainer, folder, figures)
        self._bundle(folder)
        some = self._batches(plan.heads_positions).some(plan.judged * 6)
        modules, facts = train_small(trainer, some, judged, seconds * 0.1, plan.steps)
        log(facts)
        for name in ("clp", "gate"):
            save_addon(folder, name, modules[name], base, hidden, threshold=0.99)
        save_addon(folder / "k2", "clp", modules["clp2"], base, hidden, threshold=0.99)
        self._bundle(folder)

    def _feed_back(self, trainer: HeadTrainer, folder: Path, figures: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        fed, shape = trainer.fed, self.stack.shape
        named = {
            f"mtp.{n}": p.detach().to(torch.bfloat16).cpu().contiguous()
            for n, p in fed.named_parameters()
        }
        save_file(named, folder / "mtp_module.safetensors")
        facts = {
            "form": "u = fc [N(E[token]); N(state)]; m = N_out(layer(u)); logits by the LM head",
            "k": 4,
            "hidden": shape.hidden,
            "heads": shape.heads,
            "kv_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "ffn": len(named["mtp.layers.0.mlp.gate_proj.weight"]),
            "eps": shape.eps,
            "rope_theta": shape.theta,
            "norm": "x / rms(x) * weight",
            "rope": "the pair of state n and token n + 1 at n; each further pair one place on",
            "bytes": sum(p.numel() for p in named.values()) * 2,
            "results": figures["fed_back"],
        }
        (folder / "mtp_module.json").write_text(json.dumps(facts, indent=2) + "\n")

    def _bundle(self, folder: Path) -> None:
        path = self.out / "addons.tar"
        with tarfile.open(path.with_suffix(".part"), "w") as tar:
            tar.add(folder, "addons")
        path.with_suffix(".part").rename(path)

    # -- D. own text -----------------------------------------------------------------------------

    def own(self) -> None:
        plan, c = self.plan, self.corpus
        held = np.flatnonzero(c.held & (c.prompts <= plan.own_longest))
        held = held[np.argsort(c.prompts[held], kind="stable")]
        held = held[:: max(1, len(held) // plan.own_prompts)][: plan.own_prompts]
        prompts = [c.tokens[c.starts[i] : c.starts[i] + c.prompts[i]] for i in held]
        ends = (
            (2, 0)
            if self.tokens is None
            else tuple(self.tokens.encode(t)[0] for t in ("<|im_end|>", "<|endoftext|>"))
        )
        plain = self.stack.weights.layers
        jobs: list[tuple[str, list[Any], Split, bool, int]] = [
            ("ar", plain[-1:], Split(0, 1), False, 1)
        ]
        for trainer in self.trained:
            way = trainer.way
            made = trainer.adapted.layers()
            for tau in TAUS:
                jobs.append((way.name, made, way.split, way.shared, tau))
        for i, (name, made, split, shared, tau) in enumerate(jobs):
            last = time.monotonic() + max(0.5, (self.left() - 2.0) / (len(jobs) - i))
            found = own_text(
                self.stack, made, split, shared, tau, prompts, plan.own_tokens, ends, last
            )
            first = found.pop("first_text")
            text = self.tokens.decode(first) if self.tokens else ""
            self.log("own", {"way": name, **found, "text": text})


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", default="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--out", required=True)
    parser.add_argument("--data", help="a data.npz of an earlier run, in place of new texts")
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--smoke", action="store_true", help="random weights, full batches, few steps"
    )
    parser.add_argument("--phases", default="data,sweep,heads,main,second,own")
    parser.add_argument("--middle", default="E0D10", help="the split of the sweep's first half")
    parser.add_argument("--splits", nargs="*", default=["E0D7", "E0D14", "E2D8", "E4D10"])
    parser.add_argument("--main", help="the split of the long run, whatever the sweep says")
    parser.add_argument(
        "--enough",
        type=float,
        default=0.55,
        help="the smallest split with this late share at C2 is trained on",
    )
    for name in (
        "rows",
        "room",
        "positions",
        "judged",
        "own_prompts",
        "own_tokens",
        "steps",
        "data_steps",
        "wanted",
        "kept",
    ):
        parser.add_argument("--" + name.replace("_", "-"), type=int)
    return parser.parse_args(argv)


def plan_of(options: argparse.Namespace) -> Plan:
    plan = Plan()
    if options.smoke:
        plan = replace(plan, steps=9, data_steps=128, own_prompts=64, own_tokens=8)
    given = {
        name: value
        for name in Plan.__dataclass_fields__
        if (value := getattr(options, name, None)) is not None
        and name not in ("main", "data", "sweep", "heads", "second")
    }
    if "positions" in given:
        given |= {f"{name}_positions": given["positions"] // 2 for name in ("sweep", "heads")}
    return replace(plan, **given)


def main() -> None:
    options = arguments()
    log = Log(Path(options.out))
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    session = Session(options, plan_of(options), log)
    log(
        "start",
        {
            "torch": torch.__version__,
            "options": vars(options),
            "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        },
    )
    for name in options.phases.split(","):
        session.phase(name, getattr(session, name))
    log("end", {"files": {p.name: p.stat().st_size for p in session.out.iterdir() if p.is_file()}})


if __name__ == "__main__":
    main()

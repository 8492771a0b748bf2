"""Load models with faults drawn by chance: python scripts/fuzz_models.py --count 20000

Each fault is one of a config, a tokenizer, a safetensors header or a GGUF header. Every model is
either read, or refused by one sentence, within 10 s and 512 MiB, with nothing on standard error.
Prints each fault that breaks this once, and how often it came. Linux.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "models")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SECONDS, ROOM = 10.0, 512 * 2**20
# of a worker that a fault makes grow without end
MOST = 12 * 2**30


def work(pipe: Connection, folder: str) -> None:
    """Answer each case with how it went, seconds and bytes, until there are none."""
    import mutated
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MOST, MOST))
    said = Path(folder) / "stderr"
    os.dup2(os.open(said, os.O_RDWR | os.O_CREAT | os.O_TRUNC), 2)
    while (case := pipe.recv()) is not None:
        os.ftruncate(2, 0)
        before, began = _held("VmRSS"), time.perf_counter()
        _reset_peak()
        try:
            how = mutated.outcome(mutated.write(case, Path(folder) / "case"))
            how = "read" if how == "read" else "refused"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(where.filename).name}:{where.lineno}"
            how = f"raised {type(error).__name__} at {at}: {str(error)[:300]}"
        took, grew = time.perf_counter() - began, _held("VmHWM") - before
        words = said.read_text(errors="replace")
        if how in ("read", "refused") and words.strip():
            how = f"wrote on standard error: {words.strip()[:300]}"
        elif how in ("read", "refused") and took > SECONDS:
            how = f"took {took:.0f} s"
        elif how in ("read", "refused") and grew > ROOM:
            how = f"took {grew / 2**20:.0f} MiB"
        pipe.send((how, took, grew))


def _held(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    match = re.search(rf"{name}:\s+(\d+) kB", text)
    return int(match[1]) * 1024 if match else 0


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        # not allowed in every container: the peak is then that of all cases so far
        pass


class Worker:
    """A process that loads one model after another."""

    def __init__(self, folder: Path) -> None:
        self.pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=work, args=(other, str(folder)), daemon=True)
        self.process.start()
        other.close()

    def ask(self, case: object) -> tuple[str, float, int] | None:
        """Run a case; None where the process had to be ended, or ended itself."""
        self.pipe.send(case)
        # the first one waits for the imports
        if self.pipe.poll(SECONDS + 110 if not hasattr(self, "warm") else 3 * SECONDS):
            self.warm = True
            try:
                return self.pipe.recv()
            except EOFError:
                return None
        self.process.kill()
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", help="one case again, as it was printed: BASE/FILE NUMBER")
    options = parser.parse_args()
    import mutated
    from test_mutated import mutated_bases

    with tempfile.TemporaryDirectory(prefix="fuzz-models-") as name:
        folder = Path(name)
        bases = mutated_bases(folder, *_made(folder))
        if options.case:
            at, number = options.case.rsplit(" ", 1)
            base = next(b for b in bases if at.split("/")[0] == b.name)
            file = base.name if base.is_file() else at.split("/", 1)[1]
            path = mutated.write(mutated.Case(base, file, int(number)), folder / "case")
            print(mutated.outcome(path))
            return
        sys.exit(run(options.count, options.seed, bases, folder))


def run(count: int, seed: int, bases: list[Path], folder: Path) -> int:
    """Run so many cases; print what broke, and a line at the end. Returns how many kinds broke."""
    import mutated

    rng = random.Random(seed)
    ends: collections.Counter[str] = collections.Counter()
    broke: collections.Counter[str] = collections.Counter()
    slowest, largest = 0.0, 0
    worker = Worker(folder)
    for number in range(count):
        base = rng.choice(bases)
        case = mutated.Case(base, rng.choice(mutated.files_of(base)), seed * 10**7 + number)
        answer = worker.ask(case)
        if answer is None:
            how = f"ended or hung the process ({case.file})"
            worker = Worker(folder)
        else:
            how, took, grew = answer
            slowest, largest = max(slowest, took), max(largest, grew)
        if how in ("read", "refused"):
            ends[how] += 1
        else:
            kind = re.sub(r"/\S+|\d+|'[^']*'", "…", how)[:120]
            if not broke[kind]:
                print(f"{case}: {how}", flush=True)
            broke[kind] += 1
        if number % 500 == 499:
            print(f"{number + 1}: {dict(ends)}, {broke.total()} broke", flush=True)
    print(
        f"{count:,} cases: {ends['read']:,} read, {ends['refused']:,} refused, {broke.total():,} "
        f"broke in {len(broke)} kinds; slowest {slowest:.1f} s, most memory {largest / 2**20:.0f} "
        "MiB"
    )
    for kind, times in broke.most_common():
        print(f"{times:6,}  {kind}")
    return len(broke)


def _made(folder: Path) -> tuple[object, Path]:
    """A small tokenizer, and a tiny Qwen3 with it."""
    from transformers import GenerationConfig

    from dmtd_demo.training.tokenizer import train_tokenizer
    from dmtd_demo.training.world.mix import training_examples
    from tiny import tiny_module

    stream = training_examples("test tokenizer")
    texts = (text for _ in range(300) for _, text in next(stream)[1].messages)
    tokenizer = train_tokenizer(texts, 600)
    module = tiny_module("qwen3", vocab_size=len(tokenizer), max_position_embeddings=512)
    module.config.eos_token_id = tokenizer.eos_token_id
    module.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    module.save_pretrained(folder / "made")
    tokenizer.save_pretrained(folder / "made")
    return tokenizer, folder / "made"


if __name__ == "__main__":
    main()

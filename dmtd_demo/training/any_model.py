"""`train heads|clp|gate|adaptive --model …`: add-ons for any Qwen, plain or quantized, by the one loop."""
from __future__ import annotations

from pathlib import Path

import torch

from dmtd_demo.addons import load_addons, save_addon
from dmtd_demo.decoders.clp import accepted_length
from dmtd_demo.decoders.mtp_gate import open_gates
from dmtd_demo.errors import UserError
from dmtd_demo.loading import Model
from dmtd_demo.memory import free, gib
from dmtd_demo.split import Split
from dmtd_demo.training import calibrate, features
from dmtd_demo.training.corpus import read_rows
from dmtd_demo.training.loop import train

STEPS = {"heads": 2000, "clp": 1000, "gate": 1000, "adaptive": 1000}
HELD_OUT = 10            # every tenth row calibrates the threshold instead of training
ROOM = 2 ** 32           # bytes of hidden states at most


def train_addon(name: str, model: Model, output: Path, *, data: str | None, steps: int | None, seed: int, resume: bool, checkpoint_seconds: float) -> None:
    """Train one add-on in `output`; the result lies in `output`/addons, a folder of add-ons. Raises UserError."""
    if name not in STEPS:
        raise UserError(f"train {name} is for the embedded model; with --model it needs one of {', '.join(STEPS)}")
    steps = STEPS[name] if steps is None else steps
    if steps < 1:
        raise UserError(f"--max-steps needs a whole number, 1 or more; got {steps}")
    backbone, split, folder = model.backbone, model.split or Split.default(model.layers), output / "addons"
    heads = None
    if name in ("clp", "gate"):
        trained, _ = load_addons(folder, backbone.hidden_size, torch.float32, backbone.device, model.base) if folder.exists() else (model.addons, {})
        heads = trained.get("mtp_heads") or model.addons.get("mtp_heads")
        if heads is None:
            raise UserError(f"training {name} needs MTP heads in {folder}: run `train heads --model … --output {output}` first")
        heads = heads.float()
    rows = read_rows(model, data, output / "answers.jsonl")
    kept = rows[::HELD_OUT] if len(rows) > HELD_OUT else rows
    learned = [row for i, row in enumerate(rows) if i % HELD_OUT] if len(rows) > HELD_OUT else rows
    seen = features.collect(name, backbone, split, heads, learned, min(ROOM, free("cpu") // 4), seed)
    print(f"{name}: {len(seen.h):,} positions of {len(learned)} rows, {gib(seen.h.numel() * seen.h.element_size())}")
    facts = {"data": Path(data).name if data else "self-distillation on the shipped prompts", "positions": len(seen.h), "steps": steps, "seed": seed}
    recipe = features.recipe(name, backbone, model.base, seed, heads.k if heads else 0, facts)
    train(recipe, lambda position: seen.draws(name, seed, position), steps * features.DRAWN[name], output, resume=resume, device=backbone.device,
          checkpoint_seconds=checkpoint_seconds, log=output / "log.jsonl")
    if not heads:
        return
    module = recipe.trainable
    read = (lambda h: module(h).softmax(-1)) if name == "clp" else (lambda h: module(h).sigmoid())
    accept = (lambda p, k, t: accepted_length(p, k, t, "cumulative")) if name == "clp" else open_gates
    try:
        found = calibrate.spans(backbone, split, heads, kept, read, accept)
    except RuntimeError as error:   # texts that the model would not have written itself
        print(f"{name}: {error}")
        return
    save_addon(folder, name, module, model.base, backbone.hidden_size, **{**facts, **found})
    print(f"{name}: default threshold {found['threshold']}, {found['validation']}")

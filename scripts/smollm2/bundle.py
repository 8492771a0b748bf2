"""What `train.py` wrote as a folder of add-ons, bound to the GGUF file that they were trained on.

    python scripts/smollm2/bundle.py runs/smollm2 assets/smollm2-135m

CLP's threshold is the most generous that the run measured with WANTED of the tokens taken along
right; the gate's stays at the most careful one, and `calibrate.py` sets both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import frequent

from dmtd_demo.models.addons import ADDONS, CARD, Base, save_addon
from dmtd_demo.models.catalog import CATALOG
from dmtd_demo.models.fetch import at_hand
from dmtd_demo.models.gguf import read
from dmtd_demo.models.gguf_weights import fingerprint

NAME = "SmolLM2-135M-Instruct"
DATA = "16,613 conversations that the model wrote itself (conversations.npz)"
CAREFUL, WANTED = 0.9999, 0.97


def last_of(log: list[dict], phase: str, **wanted: object) -> dict:
    found = [line for line in log if line["phase"] == phase and wanted.items() <= line.items()]
    return found[-1]


def clp_facts(log: list[dict]) -> dict:
    """Threshold and figures, from what the run measured on held-out conversations."""
    measured = next(line["clp"] for line in log if line["phase"] == "heads" and "clp" in line)
    table = {float(name[3:]): found for name, found in measured.items() if name.startswith("at ")}
    best = min(t for t, (_, right) in table.items() if right >= WANTED)
    validation = {
        "wanted": WANTED,
        "tokens_per_full_pass": table[best][0],
        "agreement": table[best][1],
        "by_threshold": {str(t): found for t, found in table.items()},
    }
    return {"threshold": best, "validation": validation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="the --out of train.py")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tau", type=int, default=2, help="cycle length where none is asked for")
    options = parser.parse_args()
    run, folder = options.run, options.folder
    folder.mkdir(parents=True, exist_ok=True)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    entry = CATALOG[NAME]
    path = at_hand(entry.source, entry.archive)
    if path is None:
        sys.exit(f"run `python -m dmtd_demo get {NAME}` first")
    base = Base(entry.source.partition(":")[0], None, fingerprint(read(path)))
    with tempfile.TemporaryDirectory() as held, tarfile.open(run / "addons.tar") as tar:
        tar.extractall(held, filter="data")
        made = Path(held) / "addons"
        facts = json.loads((made / CARD).read_text())["addons"]
        hidden = entry.shape["hidden_size"]
        for method in ("mtp_heads", "head0", "clp", "gate"):
            module = ADDONS[method](hidden, facts[method]["k"])
            module.load_state_dict(load_file(made / f"{method}.safetensors"))
            more = {"data": DATA, **{k: v for k, v in facts[method].items() if k != "k"}}
            if "threshold" in more:
                more |= clp_facts(log) if method == "clp" else {"threshold": CAREFUL}
            save_addon(folder, method, module, base, hidden, **more)
        fed_back = json.loads((made / "mtp_module.json").read_text())
        shutil.copyfile(made / "mtp_module.safetensors", folder / "fed_back.safetensors")
        (folder / "fed_back.safetensors").chmod(0o644)
    files = sorted(run.glob("layers-*.safetensors"))
    with safe_open(files[0], "pt") as first:
        meta = first.metadata()
    if meta["shared"] != "False" or meta["group"] != "32":
        sys.exit(f"{files[0]} needs layers of the gated way in groups of 32; got {meta}")
    for n, file in enumerate(files):
        shutil.copyfile(file, folder / f"dmtd_layers-{n}.safetensors")
        (folder / f"dmtd_layers-{n}.safetensors").chmod(0o644)
    seen = last_of(log, "main", last=True)
    held_out = last_of(log, "layers", bits=int(meta["bits"]))["compressed"]
    form = f"int{meta['bits']}, groups of 32"
    card = json.loads((folder / CARD).read_text())
    card["license"] = "apache-2.0"
    card["addons"]["fed_back"] = {"width": fed_back["ffn"], "data": DATA, **fed_back["results"]}
    card["addons"]["dmtd_layers"] = {
        "split": meta["split"],
        "tau": options.tau,
        "bits": int(meta["bits"]),
        "files": len(files),
        "data": DATA,
        "positions": seen["positions"],
        "held_out": {tau: held_out[form][tau] for tau in ("C2", "C3", "C4")} | {"C6": seen["C6"]},
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    shutil.copyfile(run / "data.npz", folder / "conversations.npz")
    frequent.add(folder, entry.shape["vocab_size"])
    for line in log:
        if line["phase"] == "start":
            # where the run's files lay says nothing here
            line["options"] |= {"weights": path.name, "out": run.name}
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))


if __name__ == "__main__":
    main()

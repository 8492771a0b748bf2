"""Imports go one way, and the core needs neither the page's packages nor quantization's."""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dmtd_demo"
# what each part may import of the others, beside errors, split, machine and itself
ALLOWED = {
    "ui": {"race", "trace", "addons", "training", "decoders", "loading", "catalog", "sampling", "chat", "backbone", "availability", "download", "memory", "placement", "residents"},
    "race": {"arrivals", "audit", "trace", "chat", "decoders", "loading", "sampling"}, "arrivals": {"decoders", "sampling", "trace"}, "audit": {"decoders", "loading"},
    "evaluation": {"trace", "chat", "decoders", "loading", "race", "sampling", "training"},
    "drawing": {"trace"}, "report": set(), "results": {"report"}, "projection": {"catalog"},
    "bench": {"blocked", "chat", "decoders", "limits", "loading", "race", "sampling"},
    "limits": {"backbone", "decoders", "loading", "sampling", "trace"},
    "decoders": {"backbone", "cache", "sampling", "addons", "loading"},   # loading for its type alone
    "training": {"backbone", "blocked", "addons", "chat", "four_bit", "loading", "decoders", "memory", "sampling"},
    "loading": {"addons", "backbone", "blocked", "catalog", "checkpoint", "four_bit", "hub", "memory", "packed", "placement"},
    "residents": {"loading", "memory", "placement"}, "download": {"hub"},
    "checkpoint": {"backbone"}, "hub": {"memory"}, "publishing": {"addons", "hub"},
    "availability": {"addons", "catalog", "decoders", "memory", "placement", "projection", "training"},
    "placement": {"memory"}, "memory": set(),
    "backbone": {"cache", "fused", "graphs"}, "graphs": {"cache", "fused", "kernels"}, "kernels": set(), "fused": {"blocked", "packed"}, "packed": set(), "four_bit": set(), "blocked": {"memory"},
    "addons": set(), "cache": set(), "sampling": set(), "chat": set(), "trace": set(), "catalog": set(), "split": set(), "machine": set(), "options": set(), "errors": set(), "progress": set()}
EVERYWHERE = {"errors", "split", "machine", "progress"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dmtd_demo"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def test_imports_go_one_way():
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in ("__init__", "__main__"):
            continue
        extra = imports(path) - ALLOWED[part] - EVERYWHERE - {part}
        assert not extra, f"{path.relative_to(ROOT)} imports {extra}"


def test_only_the_page_imports_gradio_and_plotly():
    for path in PACKAGE.rglob("*.py"):
        if "ui" in path.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"gradio", "plotly", "bitsandbytes"}, path


def test_the_core_imports_without_the_pages_packages():
    code = f"""
import sys
for name in ("gradio", "plotly", "bitsandbytes"):
    sys.modules[name] = None
sys.path.insert(0, {str(ROOT)!r})
import dmtd_demo
assert "torch" not in sys.modules
import dmtd_demo.race, dmtd_demo.evaluation, dmtd_demo.bench, dmtd_demo.training.run, dmtd_demo.__main__
dmtd_demo.compare   # a notebook needs neither the page nor, before it draws, its charts
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_no_remote_code_no_pickle():
    for path in [*PACKAGE.rglob("*.py"), ROOT / "app.py"]:
        text = path.read_text(encoding="utf-8")
        for word in ("trust_remote_code", "torch.load(", "pickle"):
            assert word not in text, f"{path}: {word}"

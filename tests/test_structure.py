"""The rooms of the package import downward only, and what few may import stays with them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dmtd_demo"
# Each floor may import from those below it, and every room from itself. Rooms of one floor do not
# know each other.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"ui"},
    {"server"},
    {"comparison", "measure"},
    {"race", "training", "web"},
    {"decoders"},
    {"models"},
    {"backbone"},
    {"destinations", "machine", "progress", "proxies", "sampling", "shipped", "text_files"},
    {"cuda", "errors", "vnni"},
]
FLOOR = {room: height for height, rooms in enumerate(reversed(FLOORS)) for room in rooms}
# What transformers' Qwen modules are made of, and the files that know it.
INSIDE = {
    "embed_tokens",
    "rotary_emb",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "input_layernorm",
    "post_attention_layernorm",
}
# Packages, and the rooms that may import them; app.py is the page's own start.
KEPT = {
    "gradio": {"ui"},
    "plotly": {"ui", "comparison"},
    "bitsandbytes": set(),
    "peft": {"training"},
    "datasets": {"training"},
    "gguf": {"models"},
}
INNER = {PACKAGE / "backbone" / name for name in ("qwen.py", "qwen_modules.py", "hybrid.py")}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> Iterator[Path]:
    return (path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py")


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions: in full, and with each name that is
    taken from it.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_import_downward():
    for path in modules():
        own = room_of(path)
        assert own in FLOOR, f"{own} is a room that tests/test_structure.py does not name"
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "dmtd_demo":
                continue
            assert parts[1] in FLOOR, f"{path.relative_to(ROOT)} imports {name}: name the room"
            assert parts[1] == own or FLOOR[parts[1]] < FLOOR[own], (
                f"{path.relative_to(ROOT)} imports {name}, which is not below {own}"
            )


def test_no_module_imports_itself_by_way_of_others():
    imports = {
        path: {
            PACKAGE.joinpath(*name.split(".")[1:length])
            for name in imported(path)
            if name.startswith("dmtd_demo.")
            for length in (2, 3, 4)
        }
        for path in modules()
    }
    named = {
        path: path.parent if path.name == "__init__.py" else path.with_suffix("")
        for path in imports
    }
    waiting = {
        named[path]: targets & set(named.values()) - {named[path], named[path].parent}
        for path, targets in imports.items()
    }
    while waiting:
        free = {name for name, targets in waiting.items() if not targets & waiting.keys()}
        assert free, (
            "in a circle, or above one: "
            f"{sorted(str(name.relative_to(PACKAGE)) for name in waiting)}"
        )
        waiting = {name: targets for name, targets in waiting.items() if name not in free}


def test_packages_that_only_some_rooms_import():
    for path in modules():
        for name in imported(path):
            package = name.split(".")[0]
            assert package not in KEPT or room_of(path) in KEPT[package], (
                f"{path.relative_to(ROOT)} imports {name}"
            )


def test_transformers_internals_are_touched_in_three_files():
    public = ("transformers.utils.logging", "transformers.generation.")
    for path in modules():
        if path in INNER:
            continue
        inner = [
            name
            for name in imported(path)
            if name.startswith("transformers.")
            and name.count(".") > 1
            and not name.startswith(public)
        ]
        parts = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
        } & INSIDE
        assert not inner and not parts, f"{path.relative_to(ROOT)} touches {inner or parts}"


def test_no_module_is_a_box_of_odds_and_ends():
    for path in modules():
        assert not {"utils", "util", "helpers", "common", "misc"} & {
            part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts
        }, path


def test_the_core_imports_without_the_pages_packages():
    code = f"""
import sys
for name in ("gradio", "plotly", "bitsandbytes"):
    sys.modules[name] = None
sys.path.insert(0, {str(ROOT)!r})
import dmtd_demo
assert "torch" not in sys.modules
import dmtd_demo.cli.page, dmtd_demo.__main__
assert "torch" not in sys.modules   # neither --help nor a mistyped option waits for it
import dmtd_demo.race.race, dmtd_demo.measure.evaluation, dmtd_demo.measure.bench, dmtd_demo.training.run, dmtd_demo.server.lecture, dmtd_demo.server.zero
dmtd_demo.compare   # a notebook needs neither the page nor, before it draws, its charts
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_no_remote_code_no_pickle():
    for path in [*PACKAGE.rglob("*.py"), ROOT / "app.py"]:
        text = path.read_text(encoding="utf-8")
        for word in ("trust_remote_code", "torch.load(", "pickle"):
            assert word not in text, f"{path}: {word}"


def test_no_two_test_files_have_one_name():
    """pytest imports them by their name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


# One function of a GPU's kernel takes pointers, sizes and strides one by one: a kernel knows no
# dataclass, and what starts it passes them on.
KERNELS = {"backbone/kernels.py"}
MOST_PARAMETERS = 6


def test_no_function_takes_more_than_six_parameters():
    """Beside self: what belongs together is a frozen dataclass."""
    found = []
    for path in modules():
        if str(path.relative_to(PACKAGE)) in KERNELS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [each.arg for each in taken if each.arg not in ("self", "cls")]
                if len(names) > MOST_PARAMETERS:
                    found.append(f"{path.relative_to(PACKAGE)}: {node.name} takes {len(names)}")
    assert not found, found


def runnable_scripts() -> list[tuple[Path, str]]:
    scripts = [
        (path, path.read_text(encoding="utf-8"))
        for folder in ("scripts", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    return [(path, text) for path, text in scripts if '__name__ == "__main__"' in text]


# Packages that a second goes by with, and the modules of ours that need none of them.
SLOW = {
    *("torch", "transformers", "huggingface_hub", "gguf", "dmtd_demo"),
    *("conftest", "tiny", "scripted_page"),
}
LIGHT = ("dmtd_demo.shipped.", "dmtd_demo.ui.examples.", "dmtd_demo.destinations.")


def test_scripts_answer_help_at_once() -> None:
    """What only the work needs is imported where it is done."""
    for path, text in runnable_scripts():
        if path.parent.name == "smollm2":
            continue
        tops = [
            node for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        for node in tops:
            for alias in node.names:
                name = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
                slow = name.split(".")[0] in SLOW and not name.startswith(LIGHT)
                assert not slow, f"{path.name} imports {name} before it reads its options"


def test_scripts_do_nothing_before_they_read_their_options() -> None:
    """So that --help answers: no statement of a script that can be run works as it is imported."""
    runnable = runnable_scripts()
    assert len(runnable) > 20
    for path, text in runnable:
        assert "argparse" in text, path
        for node in ast.parse(text).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                assert ast.unparse(node.value.func).startswith(("sys.path.", "os.environ.")), path
            assert not isinstance(node, (ast.For, ast.While, ast.With)), path

"""Publish the app as a Hugging Face Space, by upload_folder: the hub takes no binary files from git
pushes.

    python scripts/publish_space.py you/dmtd-demo                                         # a CPU Space: 2 vCPU, 16 GB
    python scripts/publish_space.py you/dmtd-demo --zero --models classroom,Qwen3-4B      # ZeroGPU, with these models
    python scripts/publish_space.py --folder out                                          # only writes what would be uploaded

It needs the token of `hf auth login`. What goes there is the app alone, with requirements of its
own: on a CPU PyTorch's small build, on ZeroGPU a version that ZeroGPU has.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PARTS = ("app.py", "dmtd_demo", "assets", "README.md", "LICENSE", "CITATION.cff", "docs")
ZERO_TORCH = "torch==2.11.0"  # ZeroGPU has 2.8 to 2.11
# the same versions without gigabytes of CUDA
CPU_INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu"
MOST_BYTES = 10 * 2**20


def write(folder: Path, zero: bool, models: list[str]) -> None:
    """The Space's files.

    models: in memory from the start, by catalog name or hub id. Raises ValueError where one is
    larger than the hub's git would take.
    """
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(
                source, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        else:
            shutil.copy2(source, folder / part)
    (folder / "requirements.txt").write_text(requirements(zero), encoding="utf-8")
    readme = folder / "README.md"
    _, facts, text = readme.read_text(encoding="utf-8").split("---\n", 2)
    readme.write_text(f"---\n{front_matter(facts, models)}---\n{text}", encoding="utf-8")
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise ValueError(
                f"a file of a Space needs to be under {MOST_BYTES >> 20} MB; "
                f"{path.relative_to(folder)} has {path.stat().st_size:,} bytes"
            )


def requirements(zero: bool) -> str:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if zero:
        return "\n".join(ZERO_TORCH if line.startswith("torch>") else line for line in lines) + "\n"
    return "\n".join([CPU_INDEX, *lines]) + "\n"


def front_matter(own: str, models: list[str]) -> str:
    """The README's, with what the hub is to fetch before the Space starts."""
    import yaml

    from dmtd_demo.models.catalog import CATALOG

    facts = yaml.safe_load(own)
    sources = [
        CATALOG[name].source if name in CATALOG else name
        for name in models
        if not (name in CATALOG and CATALOG[name].is_local)
    ]
    if sources:
        facts |= {
            "models": [source.partition(":")[0] for source in sources],
            # of a GGUF file's repository that file alone
            "preload_from_hub": [source.replace(":", " ") for source in sources],
            "startup_duration_timeout": "1h",
        }
    return yaml.safe_dump(facts, allow_unicode=True, sort_keys=False)


def publish(space: str, folder: Path, zero: bool, models: list[str], private: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(
        space,
        repo_type="space",
        space_sdk="gradio",
        exist_ok=True,
        private=private,
        space_hardware="zero-a10g" if zero else None,
    )
    api.add_space_variable(space, "DMTD_MODELS", ",".join(models))
    api.upload_folder(
        repo_id=space,
        repo_type="space",
        folder_path=folder,
        delete_patterns=["*"],
        commit_message="dmtd_demo",
    )
    return f"https://huggingface.co/spaces/{space}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("space", nargs="?", help="owner/name")
    parser.add_argument(
        "--folder", type=Path, help="write the Space's files there, and upload nothing"
    )
    parser.add_argument("--zero", action="store_true", help="a ZeroGPU Space")
    parser.add_argument(
        "--models",
        default="classroom",
        help="in memory from the start, with commas between them; default: %(default)s",
    )
    parser.add_argument("--private", action="store_true")
    args = parser.parse_args()
    models = [name.strip() for name in args.models.split(",") if name.strip()]
    if bool(args.space) == bool(args.folder):
        parser.error("needs a Space, owner/name, or --folder")
    # after --help, which needs none of it
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        if args.folder:
            args.folder.mkdir(parents=True)
            write(args.folder, args.zero, models)
            print(f"Written to {args.folder}")
        else:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), args.zero, models)
                print(publish(args.space, Path(folder), args.zero, models, args.private))
    except (OSError, ValueError, HfHubHTTPError, LocalTokenNotFoundError) as error:
        print(f"publish_space.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

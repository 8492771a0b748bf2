"""The package as `pip install .` leaves it, away from the checkout that it was made from."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from app_process import ROOT, Visitor, running_app

pytestmark = pytest.mark.slow

FACTS = """
import importlib.metadata, json, dmtd_demo
race = dmtd_demo.compare(
    "What is 47 + 38?", ["ar", "dmtd:tau=4"], model=dmtd_demo.load("classroom", threads=1)
)
print(json.dumps({
    "file": dmtd_demo.__file__,
    "requires": importlib.metadata.requires("dmtd-demo"),
    "summaries": [record for record in race.records if record["type"] == "summary"],
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment elsewhere that has this commit's package.

    PyTorch and the other requirements are the tests' own, added to its path: to download them again
    would take minutes.
    """
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout to clone")
    folder = tmp_path_factory.mktemp("elsewhere")
    clone, made = folder / "clone", folder / "made"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{ROOT}", clone], check=True)
    venv.create(made, symlinks=True)
    python = made / "bin" / "python"
    packages = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    own = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    Path(packages.strip(), "tests_own.pth").write_text("\n".join(own), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
        + ["--no-deps", "--no-build-isolation", "--force-reinstall", clone],
        check=True,
    )
    clone.rename(folder / "away")  # nothing may be read from there
    return made / "bin"


def test_the_library_races_where_it_is_installed(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    facts = json.loads(
        subprocess.check_output([installed / "python", "-c", FACTS], cwd=tmp_path, text=True)
    )
    assert Path(facts["file"]).is_relative_to(installed.parent)
    assert [summary["stop"] for summary in facts["summaries"]] == ["eos", "eos"]
    assert all("85" in summary["text"] for summary in facts["summaries"])
    ranges = {
        str(Requirement(line)) for line in (ROOT / "requirements.txt").read_text().splitlines()
    }
    assert {str(Requirement(line)) for line in facts["requires"] if "extra" not in line} == ranges


def test_the_installed_command_opens_the_page(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with running_app(tmp_path, "--threads", "1", command=installed / "dmtd-demo") as (url, _):
        visitor = Visitor(url)
        visitor.ask("What is 47 + 38?")
        records = visitor.lines()
    summaries = [record for record in records if record["type"] == "summary"]
    assert summaries and all("85" in summary["text"] for summary in summaries)


def test_what_the_user_got_wrong_is_said_in_the_commands_name(
    installed: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [installed / "dmtd-demo", "--port", "none"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("dmtd-demo: ")

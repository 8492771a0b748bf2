"""What every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

# before the package asks how many there are: with two, a process that a test forks would wait for
# the second for ever
torch.set_num_threads(1)

import pytest  # noqa: E402
from transformers import GenerationConfig  # noqa: E402

from tiny import tiny_module  # noqa: E402


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of a real browser last.

    Playwright's synchronous interface leaves an event loop running in the main thread, and
    `asyncio.run` refuses to start a second one there. With processes beside each other the order
    holds by `--no-loadscope-reorder` in pyproject.toml: without it pytest-xdist hands out files
    with many tests first.
    """
    items.sort(key=lambda item: _turn(item.path))


# these take longest, and begin before the other browser tests: one that began last would leave the
# other process idle
LONG_FILES = ("test_models.py", "test_guided.py", "test_watching.py", "test_page.py")


def _turn(path: Path) -> int:
    if "browser" not in path.parts:
        return 0
    return 1 if path.name in LONG_FILES else 2


FAMILIES = [("qwen2", True), ("qwen2", False), ("qwen3", True), ("qwen3", False)]


@pytest.fixture(params=FAMILIES, ids=lambda p: f"{p[0]}-{'tied' if p[1] else 'untied'}")
def family(request) -> tuple[str, bool]:
    return request.param


@pytest.fixture(scope="session")
def small_tokenizer():
    """A byte-level BPE with Qwen's special tokens and chat template, trained on a little of the
    small world.
    """
    from dmtd_demo.training.tokenizer import train_tokenizer
    from dmtd_demo.training.world.mix import training_examples

    stream = training_examples("test tokenizer")
    return train_tokenizer((text for _ in range(300) for _, text in next(stream)[1].messages), 600)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, small_tokenizer) -> Path:
    """A tiny random Qwen3 in Hugging Face format, with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    module = tiny_module("qwen3", vocab_size=len(small_tokenizer), max_position_embeddings=512)
    module.config.eos_token_id = small_tokenizer.eos_token_id
    module.generation_config = GenerationConfig(eos_token_id=small_tokenizer.eos_token_id)
    module.save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """The lecturer's saved races."""
    from dmtd_demo.comparison import compare

    folder = tmp_path_factory.mktemp("saved")
    race = compare("Hello", ["ar", "clp"], max_new_tokens=6)
    race.save(folder / "one.jsonl")
    race.save(folder / "two <b>.html")
    (folder / "notes.txt").write_text("not for the class")
    return folder


@pytest.fixture(scope="session")
def lecture(saved, tmp_path_factory) -> Iterator[str]:
    """`python app.py --class`: its address."""
    from app_process import running_app

    with running_app(
        tmp_path_factory.mktemp("app"), "--class", "--yes", "--class-files", str(saved)
    ) as (url, _):
        yield url


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, which is fetched once and kept for later sessions."""
    from dmtd_demo.errors import UserError
    from dmtd_demo.models.fetch import get

    try:
        return get("SmolLM2-135M-Instruct")
    except UserError as error:
        pytest.skip(f"SmolLM2 cannot be had here: {error}")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """PyTorch's threads, meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size is worth it, and the measurement comes out in the package's favour."""
    from dmtd_demo.backbone import layouts

    monkeypatch.setattr(layouts, "LARGE", 0)
    monkeypatch.setattr(layouts, "SMALL", dict.fromkeys(layouts.SMALL, 0))
    monkeypatch.setattr(layouts, "_compared", lambda linears: (2.0, 1.0, 0.5))

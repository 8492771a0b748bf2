"""A page that others can reach: what each of them may ask, and what nobody may."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_process import ROOT, Visitor, running_app
from dmtd_demo.errors import UserError
from dmtd_demo.server.allowance import PUBLIC, Allowance, Turnstile, address_of
from dmtd_demo.server.headers import policy

SECRET = "a secret of this machine"
STRANGER = {"X-Forwarded-For": "203.0.113.9"}  # as whoever comes by a front


def test_settings_of_the_operator():
    assert Allowance.of(False, {}) == Allowance() and Allowance.of(True, {}) == PUBLIC
    assert Allowance.of(True, {"DMTD_NEW_TOKENS": "50", "DMTD_PANELS": "0"}) == Allowance(
        PUBLIC.prompt_characters, 50, None, PUBLIC.races_per_minute
    )
    for value in ("many", "-1", "1.5", "²"):
        with pytest.raises(UserError, match="DMTD_NEW_TOKENS needs a whole number"):
            Allowance.of(False, {"DMTD_NEW_TOKENS": value})
    with pytest.raises(UserError, match="2 to 4"):
        Allowance.of(False, {"DMTD_PANELS": "1"})


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from("ab")), max_size=60), st.integers(1, 5))
def test_no_address_gets_more_than_its_races_in_any_minute(arrivals, most):
    now = [0.0]
    turnstile = Turnstile(Allowance(races_per_minute=most), lambda: now[0])
    let_in: dict[str, list[float]] = {"a": [], "b": []}
    for wait, address in arrivals:
        now[0] += wait
        recent = [t for t in let_in[address] if t > now[0] - 60]
        try:
            turnstile.enter(address)
            assert len(recent) < most
            let_in[address].append(now[0])
        except UserError as error:
            assert len(recent) >= most and f"{most} races a minute" in str(error)


def test_addresses_that_are_quiet_are_forgotten():
    now = [0.0]
    turnstile = Turnstile(Allowance(races_per_minute=9), lambda: now[0])
    turnstile.MOST_ADDRESSES = 10
    for number in range(100):
        now[0] += 30
        turnstile.enter(str(number))
    assert len(turnstile._times) <= 11


def test_the_address_is_the_proxys_word_only_on_a_space(monkeypatch):
    request = SimpleNamespace(
        headers={"x-forwarded-for": "6.6.6.6, 1.2.3.4"}, client=SimpleNamespace(host="10.0.0.1")
    )
    assert address_of(request) == "10.0.0.1"
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert address_of(request) == "1.2.3.4", (
        "what the visitor wrote into the header comes before what the proxy added"
    )


def test_the_policy_lets_in_the_pages_own_scripts_and_no_other():
    said = policy(
        b"<script>one</script><script src='x.js'></script><p onclick='two'><script type='module'>three</script>"
    )
    assert len(re.findall(r"'sha256-[^']+'", said)) == 2
    scripts = next(part for part in said.split("; ") if part.startswith("script-src"))
    assert "'unsafe-inline'" not in scripts and "http" not in scripts


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("app")
    (folder / "secret.txt").write_text(SECRET)
    with running_app(
        folder,
        "--host",
        "0.0.0.0",
        DMTD_NEW_TOKENS="20",
        DMTD_RACES_PER_MINUTE="4",
        DMTD_PROMPT_CHARACTERS="100",
        DMTD_PANELS="3",
    ) as (url, _):
        yield url, folder


def outcome(url: str, prompt: str, said: str = "203.0.113.9", **settings: object) -> str:
    """said: the address that the request says it comes from."""
    visitor = Visitor(url, {"X-Forwarded-For": said})
    visitor.ask(prompt, **settings)
    last = visitor.lines()[-1]
    return last["message"] or last["status"]


def test_what_is_over_the_limits_is_refused_in_words(public: tuple[str, Path]) -> None:
    url, _ = public
    assert "up to 20 new tokens; got 21" in outcome(url, "Hello", max_tokens=21)
    assert "up to 100 characters; got 101" in outcome(url, "x" * 101, max_tokens=9)
    assert "up to 3 panels; got 4" in outcome(url, "Hello", max_tokens=9, panels=4)
    # nobody says themselves what they are counted by
    said = [f"198.51.100.{number}" for number in range(5)]
    outcomes = [outcome(url, "Hello", each, max_tokens=2, panels=2) for each in said]
    assert outcomes[:4] == ["done"] * 4 and "4 races a minute for one address" in outcomes[4]


def test_nothing_outside_the_list_is_loaded(public: tuple[str, Path]) -> None:
    url, folder = public
    for name in (
        "someone/something",
        str(folder),
        "../secret",
        "another",
        "https://example.com/model",
    ):
        for other in ("", str(folder), "/no/where"):
            answer = Visitor(url, STRANGER).call("prepare", [name, "none", other])
            assert "runs the models of its list" in answer[0], answer


def test_nobody_can_train(public: tuple[str, Path]) -> None:
    url, folder = public
    for name, values in (("train", ["classroom", "clp", 20, 1]), ("put_back", ["classroom"])):
        answer = Visitor(url, STRANGER).call(name, values)
        assert "Training is not open to this request" in answer[0], answer
    assert "came with" in Visitor(url).call("put_back", ["classroom"])[0], "the owner may"


def test_the_start_says_what_is_open(public: tuple[str, Path]) -> None:
    said = (public[1] / "app.log").read_text()
    assert (
        "can be reached at 0.0.0.0 by everybody" in said
        and "20 new tokens" in said
        and "no other folder or hub id" in said
    )


def escapes(folder: Path) -> list[str]:
    """Ways to ask for a file that is not served: as it is, climbing out, encoded once and twice,
    with other separators, by other schemes.
    """
    targets = [
        str(folder / "secret.txt"),
        str(ROOT / "app.py"),
        str(ROOT / "assets" / "classroom" / "config.json"),
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/self/cmdline",
    ]
    ways = []
    for target in targets:
        plain, climbing = target, "../" * 12 + target.lstrip("/")
        ways += [
            plain,
            climbing,
            quote(plain, safe=""),
            quote(quote(plain, safe=""), safe=""),
            quote(climbing, safe=""),
            climbing.replace("../", "..%2f"),
            climbing.replace("../", "....//"),
            climbing.replace("/", "\\"),
            climbing.replace("/", "%5c"),
            "/" + plain,
            "file://" + plain,
            plain + "%00.js",
            "./" + plain,
            plain.upper(),
        ]
    return ways


def test_the_front_page_is_kept_for_each_address_and_is_the_same(public: tuple[str, Path]) -> None:
    url, _ = public

    def page(host: str, query: str = "") -> tuple[str, str]:
        answer = httpx.get(url + query, headers={"x-forwarded-host": host})
        assert answer.status_code == 200
        return answer.text, answer.headers["content-security-policy"]

    written = page("one.example")
    assert page("one.example") == page("one.example", "?prompt=Hi") == written
    assert "http://one.example" in written[0] and "http://other.example" in page("other.example")[0]
    for number in range(40):  # more than are kept
        assert f"http://n{number}.example" in page(f"n{number}.example")[0]
    assert page("one.example") == written


def test_the_config_is_kept_and_is_the_front_pages(public: tuple[str, Path]) -> None:
    url, _ = public
    first, again = (httpx.get(f"{url}config") for _ in range(2))
    assert first.json() == again.json() and first.headers["content-type"].startswith(
        "application/json"
    )
    assert {
        component["id"] for component in first.json()["components"]
    } and "content-security-policy" not in first.headers


def test_no_file_is_read_through_the_file_routes(public: tuple[str, Path]) -> None:
    url, folder = public
    known = [
        SECRET,
        "Parse options, build the page",
        "num_thinking_layers",
        "root:x:",
        "GRADIO_TEMP_DIR",
        "--no-browser",
    ]
    asked = 0
    with httpx.Client(base_url=url, timeout=60, headers={"Connection": "close"}) as http:
        assert (
            http.get("/gradio_api/proxy=http://169.254.169.254/latest/meta-data/").status_code
            >= 400
        ), "nobody is contacted for a visitor"
        for route in (
            "gradio_api/file=",
            "gradio_api/file/",
            "file=",
            "static/",
            "assets/",
            "theme.css?logical_path=",
            "gradio_api/proxy=",
            "gradio_api/custom_component/x/client/component/",
        ):
            for way in escapes(folder):
                answer = http.get(f"/{route}{way}")
                asked += 1
                assert not any(words in answer.text for words in known), (
                    route,
                    way,
                    answer.status_code,
                )
    assert asked > 500


def test_no_file_is_taken(public: tuple[str, Path]) -> None:
    url, folder = public
    before = sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.name != "app.log"
    )
    answer = httpx.post(
        f"{url}gradio_api/upload", files={"files": ("big.bin", b"x" * 2_000_000)}, timeout=60
    )
    assert answer.status_code >= 400
    after = sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.name != "app.log"
    )
    assert after - before <= 1

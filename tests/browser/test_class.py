"""A lecture: the lecturer's page, a student's view of it, and how to join."""

from __future__ import annotations

from pathlib import Path

from race_page import RacePage


def test_a_student_sees_the_race_as_it_runs(
    chromium: object, lecture: str, screenshots: Path
) -> None:
    lecturer = RacePage(chromium, lecture)
    lecturer.race("Hello", tokens=5)
    # whoever comes late sees the last race
    student = RacePage(chromium, f"{lecture}class", scheme="dark", ready="done")
    assert sum(student.origins(0).values()) == 5
    lecturer.set("#max-tokens", 80)
    lecturer.ask("What is DMTD?")
    student.wait_until("running", seconds=20)
    assert student.wait_until("done") == "done"
    lecturer.wait_until("done")
    text = "[data-panel='1']"
    assert student.page.locator(text).inner_text() == lecturer.page.locator(text).inner_text()
    assert student.origins(1) == lecturer.origins(1) and set(student.origins(1)) == {"full", "late"}
    student.page.screenshot(path=screenshots / "class.png")
    assert student.page.locator(".class-links").inner_text().split("\n")[1] == "Saved races:"
    student.page.locator(f"{text} [data-origin]").last.hover()  # it can be read like every race
    student.page.wait_for_selector("text=made by")
    lecturer.set("#max-tokens", 6)
    lecturer.ask("Hello")
    lecturer.wait_until("done")
    student.page.wait_for_function(
        "document.querySelectorAll(\"[data-panel='0'] [data-origin]\").length <= 6"
    )
    assert student.wait_until("done") == "done"
    # before the first race there is nothing to play
    assert student.page.locator(".player").is_visible()
    student.page.evaluate("document.querySelectorAll('.panel').forEach(panel => panel.remove())")
    assert not student.page.locator(".player").is_visible()
    for page in (student, lecturer):
        page.close()


def test_the_lecturers_page_says_how_to_join(
    chromium: object, lecture: str, screenshots: Path
) -> None:
    visit = RacePage(chromium, lecture)
    links = visit.page.locator("#head .class-links a")
    assert links.count() == 2
    visit.page.goto(f"{lecture}class/join")
    box = visit.page.locator("svg").bounding_box()
    assert (
        box
        and box["width"] > 300
        and visit.page.locator(".address").inner_text().endswith("/class")
    )
    assert visit.page.evaluate("document.documentElement.scrollHeight") <= 720
    visit.page.screenshot(path=screenshots / "class-join.png")
    visit.page.close()

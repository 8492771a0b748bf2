"""The picture of the pass that ran last, beside the text."""

from __future__ import annotations

import re

from race_page import RacePage


def test_the_pass_that_ran_last_is_drawn(visit: RacePage) -> None:
    visit.race()
    visit.page.get_by_role("button", name="Panel 2 fills the page").click()
    visit.page.get_by_role("button", name="To the start").click()
    visit.page.get_by_role("button", name="pass", exact=True).click()
    picture = visit.page.locator(".cycle").nth(1)
    said, drawn = [], []
    for _ in range(6):
        visit.page.get_by_role("button", name="Step on").click()
        said.append(picture.get_attribute("aria-label"))
        drawn.append({kind: picture.locator(f"rect.{kind}").count() for kind in ("full", "late")})
    assert "prefill" in said[0]
    assert "full pass: layers 1 to 12 over 1 position" in said[1]  # nothing was skipped yet
    assert all("late layers: layers 10 to 12 over 1 position" in each for each in said[2:5])
    # the next cycle's head refills the middle layers
    assert "layers 1 to 9 over 4 positions, layers 10 to 12 over 1 position" in said[5]
    assert (
        drawn[1] == {"full": 12, "late": 0}
        and drawn[2] == {"full": 0, "late": 3}
        and drawn[5] == {"full": 9 * 4 + 3, "late": 0}
    )
    assert "refills 3" in picture.inner_text()


def test_clp_shows_what_it_held_probable(visit: RacePage) -> None:
    visit.race()
    visit.page.get_by_role("button", name="Panel 3 fills the page").click()
    picture = visit.page.locator(".cycle").nth(2)
    for _ in range(3):
        visit.page.get_by_role("button", name="Step back").click()
        label = picture.get_attribute("aria-label")
        shares = [int(share) for share in re.findall(r"further: (\d+) %", label)]
        assert len(shares) == 5 and 97 <= sum(shares) <= 103
        assert picture.locator("rect.taken").count() == 1
        taken = int(re.search(r"taken: (\d+)", label)[1])
        assert picture.locator("circle.head").count() == taken


def test_a_tree_of_drafts_and_what_of_it_stands_is_drawn(chromium: object, app_url: str) -> None:
    visit = RacePage(chromium, f"{app_url}?panel=ar&panel=mtp-verified:k=4,tree=7")
    try:
        visit.race()
        visit.page.get_by_role("button", name="Panel 2 fills the page").click()
        visit.page.get_by_role("button", name="pass", exact=True).click()
        picture, most = visit.page.locator(".cycle").nth(1), 0
        for _ in range(4):
            visit.page.get_by_role("button", name="Step back").click()
            label = picture.get_attribute("aria-label")
            stand, drafts = map(int, re.search(r"drafts: (\d+) of (\d+) stand", label).groups())
            assert f"{stand} of {drafts} stand" in picture.inner_text() and drafts == 7
            assert picture.locator(".lengths circle").count() == 8
            assert picture.locator(".lengths .taken").count() == stand
            assert picture.locator(".lengths .edge.kept").count() == stand
            most = max(most, stand)
        assert most > 1
    finally:
        visit.close()

"""The HTML file that replays a race lets nothing run but its own script, and asks nobody for
anything.
"""

import base64
import hashlib
import re

from dmtd_demo.web.replay_file import HOLE, template


def test_only_its_own_script_and_style_may_work():
    page = template()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1]
    assert (
        policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    )
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", page)


def test_the_race_goes_into_a_block_that_no_browser_runs():
    page = template()
    assert page.index(HOLE) == page.index('<script type="application/json" id="record">') + len(
        '<script type="application/json" id="record">'
    )

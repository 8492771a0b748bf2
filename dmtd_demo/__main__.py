"""python -m dmtd_demo generate | compare | bench | eval | curves | project | draw | report | results | models | get | push | train"""

from __future__ import annotations

from dmtd_demo.cli.command import main

if __name__ == "__main__":
    raise SystemExit(main())

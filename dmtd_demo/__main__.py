"""`python -m dmtd_demo COMMAND`: the command line (cli/command.py)."""

from __future__ import annotations

from dmtd_demo.cli.command import main

if __name__ == "__main__":
    raise SystemExit(main())

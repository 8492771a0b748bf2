"""`python app.py`: the page, also on Hugging Face Spaces (dmtd_demo/cli/page.py)."""

from __future__ import annotations

import os
import sys

if os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true"):
    # the belief in a GPU is this thread's alone: transformers must not load weights by others
    os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")
    try:
        import spaces  # noqa: F401 - before torch, which it makes believe that a GPU is there
    except ImportError:
        sys.exit(
            "app.py: a ZeroGPU Space (SPACES_ZERO_GPU) needs the package spaces: pip install spaces"
        )

from dmtd_demo.cli.page import start  # noqa: E402

if __name__ == "__main__":
    start()

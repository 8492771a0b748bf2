"""The command lines: `python app.py` and `python -m dmtd_demo`."""

"""The figures of `eval`, `bench`, `curves`, `project` and `models`, and their tables."""

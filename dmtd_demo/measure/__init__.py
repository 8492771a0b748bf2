"""What `eval`, `bench`, `curves`, `project` and `models` print, and the tables made of it."""

"""The browser's share, without Gradio: files, texts, the replay file, a record's wire form."""

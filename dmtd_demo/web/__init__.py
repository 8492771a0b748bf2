"""What a browser is given, without Gradio: files, texts, the replay file, the wire form of a record."""

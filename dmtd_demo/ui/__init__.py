"""The web page: the only package, with app.py, that imports gradio.

It draws what `race` yields and computes no result itself.
"""

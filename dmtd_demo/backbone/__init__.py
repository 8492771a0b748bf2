"""transformers' own Qwen modules, and the fast paths through them."""

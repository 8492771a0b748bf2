"""One prompt, several decoders, one record."""

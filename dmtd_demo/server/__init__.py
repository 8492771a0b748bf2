"""Who reaches the page, and whose turn it is."""

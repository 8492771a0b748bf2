"""The server's share: who reaches the page, and whose turn it is."""

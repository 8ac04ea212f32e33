"""Files that appear whole or not at all, caches, results logs and the Hub."""

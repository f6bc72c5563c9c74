"""Runs: folders of lines, resume, processes, the one loop. Knows no experiment by name."""

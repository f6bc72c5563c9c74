"""Prompts: task rows, rendering, truncation, chat templates."""

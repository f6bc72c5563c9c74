"""Checks of one model, tokenizer, adapter or server before a number is made with it."""

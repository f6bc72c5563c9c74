"""e2bench: extend the window of a rotary-position language model, and measure what that gave."""

__version__ = "0.1.0"

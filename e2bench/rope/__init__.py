"""RoPE: scaling methods, native windows, the scale for a window, switching a loaded model."""

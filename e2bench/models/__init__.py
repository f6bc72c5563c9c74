"""Models: loading, local and served models, decoding, export."""

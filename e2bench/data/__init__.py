"""Data: fetch and verify public sets, read documents."""

"""Scoring: metrics, statistics, averages. No torch."""

"""Suites: models × experiments from one YAML file, planned, run, resumed and reported. Those that ship lie here."""

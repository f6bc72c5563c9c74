"""How the embedded tiny model and the paper in miniature are made."""

"""Paths, records, profiles, statistics, provenance, the style of figures: what all rooms use."""

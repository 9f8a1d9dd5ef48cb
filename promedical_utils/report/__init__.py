"""Data frames to tables and figures."""

"""Scheduling in three rings: core decides, service applies, the edge translates."""

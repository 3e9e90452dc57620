"""Configuration and the wiring of each role; no logic of its own."""

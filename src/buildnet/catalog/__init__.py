"""What nodes offer: how a node finds out, how it says so, and what a controller makes of it."""

"""A real C project on BuildNET, from nothing to a proof: `make demo`."""

"""BuildNET: run anything once, anywhere, and prove it. `buildnet.client` is the way in."""

__version__ = "0.1.0"

"""HTTP for people and for foreign tools, as ASGI: what is not a call of gRPC and not a cache."""

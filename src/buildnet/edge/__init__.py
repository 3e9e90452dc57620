"""gRPC services: translate, authorise, call a room, and nothing else."""

"""A worker runs what it is assigned and publishes nothing: results are offered under a fence, the
controller decides.

`buildnet.worker.run.run_worker` is the way in.
"""

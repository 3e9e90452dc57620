"""What ended, kept for a while, and why an action was not answered from the cache. It follows; it changes nothing."""

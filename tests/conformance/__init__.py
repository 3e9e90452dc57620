"""What the Remote Execution API asks of a server, one small test a rule. It runs against any server."""

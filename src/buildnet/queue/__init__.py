"""The room of what outlives the controller: operations that were accepted, and the leases of their actions."""

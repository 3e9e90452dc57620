"""Access tokens and the key that signs them. Who may do what with one is decided at the door (native/door)."""

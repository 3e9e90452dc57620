"""Values only: frozen, standard library, no I/O. Rooms and ports speak in these words."""

"""How the open connections of a process end before its server stops."""

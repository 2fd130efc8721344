"""What carries messages between sessions: in memory, or over Redis."""

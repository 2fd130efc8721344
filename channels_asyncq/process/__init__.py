"""The relay, which the event loops and threads of one process share, and the phases of a loop."""

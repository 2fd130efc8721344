"""What the event loops and threads of one process share."""

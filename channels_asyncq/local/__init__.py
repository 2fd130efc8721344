"""What one event loop holds: its channels, its groups, and the door through which others hand it messages."""

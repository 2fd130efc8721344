"""What one event loop holds: its channels, its groups, and the mailbox for messages from other loops."""

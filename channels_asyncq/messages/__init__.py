"""From a message to the bytes that travel, and back."""

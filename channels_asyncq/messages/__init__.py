"""Messages, the bytes in which they travel, and the envelopes around these."""

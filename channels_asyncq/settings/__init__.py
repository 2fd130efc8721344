"""From `CONFIG` to validated options."""

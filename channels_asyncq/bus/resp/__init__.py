"""Connections: from a host in the settings to commands, replies and messages."""

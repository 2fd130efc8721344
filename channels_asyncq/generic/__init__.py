"""The generic consumers of Channels, leaner inside."""

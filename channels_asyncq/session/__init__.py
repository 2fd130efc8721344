"""The session of an event loop in a layer, in rooms, and the registry of a layer's sessions."""

"""A site with one room under each ASGI server, and under Node; and clients that cost next to nothing."""

"""A site with one room, served by uvicorn or Daphne, and clients that cost next to nothing."""

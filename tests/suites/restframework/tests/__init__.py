"""What the tests of djangochannelsrestframework import, and its source distribution has not."""

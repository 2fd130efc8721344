"""What the tests of other projects need to run on this layer: `tests/test_suites.py` starts them."""

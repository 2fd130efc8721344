import pytest

# Its assertions are the contract: a failure shows the values.
pytest.register_assert_rewrite("tests.contract")

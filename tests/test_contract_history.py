"""The contract of histories, on every kind of bus."""

from __future__ import annotations

import pytest

from tests import contract
from tests.contract import LetTimePass
from tests.contract.history import HistoryResumes as TestHistoryResumes
from tests.contract.history import Pages as TestPages
from tests.test_contract_resume import make_layer

__all__ = ["TestHistoryResumes", "TestPages", "make_layer"]


@pytest.fixture
def let_time_pass() -> LetTimePass:
    return contract.time_passes

"""The contract on a real Valkey or Redis."""

from collections.abc import AsyncIterator

import pytest

from tests import contract
from tests.contract import LetTimePass, MakeLayer
from tests.contract.channels import Channels as TestChannels
from tests.contract.closing import Closing as TestClosing
from tests.contract.encryption import SharedEncryption as TestSharedEncryption
from tests.contract.flush import Flush as TestFlush
from tests.contract.groups import Groups as TestGroups
from tests.contract.messages import Messages as TestMessages
from tests.contract.names import Names as TestNames
from tests.contract.operating import Operating as TestOperating
from tests.contract.shared_channels import SharedChannels as TestSharedChannels
from tests.contract.shared_groups import SharedGroups as TestSharedGroups
from tests.contract.statistics import Idle as TestIdle
from tests.contract.statistics import Statistics as TestStatistics
from tests.contract.surveys import Surveys as TestSurveys
from tests.contract.waiting import Waiting as TestWaiting


@pytest.fixture
def let_time_pass() -> LetTimePass:
    # What waits on the server expires by the server's clock.
    return contract.time_passes

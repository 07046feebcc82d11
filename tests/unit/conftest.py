"""What most tests of the ledger want: an empty one, and the clock."""

import pytest

from dicom_node import clock
from tests.make import ledgers


@pytest.fixture
def database(tmp_path):
    with ledgers.ledger(tmp_path) as opened:
        yield opened


@pytest.fixture
def now(monkeypatch):
    """The clock, set by hand in seconds after NOON."""
    moment = [0.0]
    monkeypatch.setattr(clock, "now", lambda: ledgers.after(moment[0]))
    return moment

"""A little of the fuzzing, with seeds of its own: the whole is `python -m tests.fuzz`."""

import pytest

from tests.fuzz import associations, instances


@pytest.mark.filterwarnings("ignore")  # the node runs with its libraries' warnings too
def test_damaged_instances_are_filed_or_refused_by_name(tmp_path):
    found = instances.run(1500, tmp_path, first_seed=1_000_000)
    assert found.faults == []
    assert found.slowest_s < instances.LIMIT_S
    # the damage is neither harmless nor always deadly
    assert found.outcomes["filed"] > 100
    assert found.outcomes["UnreadableDataSet 0xC000"] > 100
    assert found.outcomes["DataSetMismatch 0xA900"] > 10


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(300)
def test_damaged_associations_harm_nobody_else(tmp_path):
    found = associations.run(40, tmp_path, first_seed=1_000_000, look_every=10)
    assert found.faults == []
    assert found.outcomes["opened"] > 10

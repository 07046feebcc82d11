"""A little of the fuzzing, with seeds of its own: the whole is `python -m tests.fuzz`."""

import pytest

from tests.fuzz import associations, instances

#: seeds of instances at which a decoder panicked or aborted, which would have ended the worker
KEPT = (33_820, 38_100, 44_860)


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
@pytest.mark.parametrize("seed", KEPT)
def test_what_was_found_once_is_not_found_again(tmp_path, seed):
    found = instances.run(1, tmp_path, first_seed=seed, build_every=1)
    assert found.faults == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(300)
def test_damaged_associations_harm_nobody_else(tmp_path):
    found = associations.run(40, tmp_path, first_seed=1_000_000, look_every=10)
    assert found.faults == []
    assert found.outcomes["opened"] > 10

"""Faults at seeded moments: whatever strikes a node, it must end its work all the same."""

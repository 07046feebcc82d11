"""Faults at seeded moments: whatever strikes a node, it must end its work all the same."""

import dicom_node.anomaly  # noqa: F401 - its guard must run before timm is imported

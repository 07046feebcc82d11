"""Findings -> DICOM result objects and pictures."""

"""Findings -> DICOM result objects and pictures.

Nothing of the clock or of chance stays in an object: the same score of the same series makes the
same bytes. A stage that is run again repeats its objects, and a PACS may get them twice.
"""

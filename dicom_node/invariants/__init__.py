"""What must always be true of ledger and disk, and where it is not: `dicom-node verify`.

:mod:`check` is the entry; the other modules are one each for what was received, the work, what was
made and sent, and the reference batches.
"""

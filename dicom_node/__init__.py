"""A PACS-connected node that scores CT and MR series for anomalies. Research use only.

The version alone: it is part of every fingerprint, so that scores of different code never mix.
"""

__version__ = "0.1.0"

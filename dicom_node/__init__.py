"""A PACS-connected node that scores CT and MR series for anomalies. Research use only."""

__version__ = "0.1.0"

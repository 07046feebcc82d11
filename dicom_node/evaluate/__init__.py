"""How the scores of the method behave when the batch varies: one experiment per thing that varies.

`dicom_node.evaluate.experiment` puts it together: a labelled folder in, tables out. Scans are
encoded once; all else works on the kept tokens and distances.
"""

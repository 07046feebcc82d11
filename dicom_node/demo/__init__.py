"""The demo: a cohort of real anatomy goes through the whole line.

It uses the node as anybody would, by its configuration, its command line and C-STORE, and reads the
ledger only to say how far things are. Nothing else in the package imports it, the command line
aside.
"""

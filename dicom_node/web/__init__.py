"""The node's page: read-only, on the loopback interface.

It has no login, hence it changes nothing, runs no script, and shows UIDs rather than patients.
"""

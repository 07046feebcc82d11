"""The node's page: read-only, on the loopback interface."""

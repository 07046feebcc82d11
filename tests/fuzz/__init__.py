"""Damaged instances and associations, many of them: nothing may crash, hang, leak or escape.

``python -m tests.fuzz`` runs all of it, the suite a little. A seed makes the same damage again.
"""

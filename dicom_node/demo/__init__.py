"""The demo: a cohort of real anatomy goes through the whole line."""

"""Foreground masks of one organ: the lungs of a CT, the brain of a T1-weighted MR."""

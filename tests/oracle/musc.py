"""MuSc's mutual scoring written as it is published, a subject at a time: slow, and large.

Li et al., MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring of
the Unlabeled Images, ICLR 2024 (arXiv 2401.16753): mutual scoring and interval average, of one
layer. All tokens of all other subjects stand in one block. Where its code takes the floor of the
share of the others, which of three is none, the ceiling is taken here.
"""

import math

import torch


def token_scores(subjects, own, share):
    """Per subject (n, dim) tokens -> (n,) scores of those of subject `own`."""
    others = [tokens for place, tokens in enumerate(subjects) if place != own]
    distances = torch.cdist(subjects[own], torch.cat(others))
    of_each = distances.split([len(tokens) for tokens in others], dim=1)
    nearest = torch.stack([block.min(dim=1).values for block in of_each], dim=1)
    k = max(1, math.ceil(share * len(others) - 1e-9))
    return nearest.topk(k, dim=1, largest=False).values.mean(dim=1)

"""When the batch is not clean: subjects that are unusual themselves, and lesions that many share.

The method rests on a batch that is mostly normal at every place. Two things break it. An abnormal
reference subject lends its lesion as an analogue and widens what passes for usual: it is found by
its own calibrated score. A lesion that many subjects share finds its like in all of them and scores
low: it is found by *who* its like is. Normal tissue has its nearest analogues in anybody; a shared
lesion has them in the same few subjects, token after token, and nowhere else.

After CoDeGraph (as used in arXiv 2602.15315), which builds a graph of images from such links and
takes its dense communities out. Its endurance ratio and its thresholds are not public: those here
are ours, and so is the test of a link against chance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dicom_node.anomaly.calibration import MAD_TO_SIGMA
from dicom_node.anomaly.spec import GuardSpec


def outliers(scores: Tensor, limit: float) -> Tensor:
    """(n,) subject scores -> (n,) bool: those more than `limit` robust deviations above the median.

    Never more than half of them. The deviation is the MAD as a normal sigma, at least 5 % of the
    median's size: scores that all but agree have no outlier.
    """
    median = scores.median()
    spread = (scores - median).abs().median() * MAD_TO_SIGMA
    return scores > median + limit * torch.maximum(spread, 0.05 * median.abs())


def suspicious_links(distances: Tensor, unusual: Tensor, spec: GuardSpec) -> Tensor:
    """Which analogues of a subject's tokens are too near to be anybody's.

    Parameters
    ----------
    distances
        (others, layers, n): of each token to its nearest in each other subject.
    unusual
        (layers, n) how unusual a token is by its distance to the *middle* one of the others: that
        one does not share what a minority shares. Calibrated by place where there is a calibration.

    Returns
    -------
    (others, layers, n) bool.
    """
    middle = distances.median(0).values  # the lower one of two
    count = max(1, math.ceil(spec.unusual_share * unusual.shape[-1]))
    least = unusual.topk(count, dim=-1).values[..., -1:]  # layers 1
    return (distances < spec.endurance * middle) & (unusual >= least)


def linked(counts: Tensor, spec: GuardSpec) -> Tensor:
    """(n, n) number of suspicious links from one subject to another -> (n, n) bool, symmetric.

    Two subjects are linked where they have more links than chance gives them: a Poisson number
    whose mean is what is usual for either (the median of its pairs: a minority shares a lesion),
    corrected for the number of pairs (Bonferroni). Where the pairs of the batch differ by more than
    that, as between scanners, counts are divided by the dispersion (quasi-Poisson). Both directions
    count together. The diagonal is False.
    """
    n = counts.shape[0]
    apart = ~torch.eye(n, dtype=torch.bool)
    both = (counts + counts.T).double()
    row = both[apart].view(n, n - 1).median(1).values
    mean = torch.maximum(row[:, None], row[None]).clamp(min=0.25)
    pairs = both[apart]
    spread = (pairs - pairs.median()).abs().median() * MAD_TO_SIGMA
    dispersion = (spread.square() / pairs.median().clamp(min=0.25)).clamp(min=1.0)
    # P(X >= k) of a Poisson variable is the regularised lower incomplete gamma function P(k, mean)
    links = both / dispersion
    tail = torch.special.gammainc(links.clamp(min=1e-9), mean / dispersion)
    level = spec.significance / max(1, n * (n - 1) // 2)
    found: Tensor = (tail < level) & (both >= spec.min_links) & apart
    return found


def without_shared(distances: Tensor, links: Tensor, partner: Tensor) -> Tensor:
    """(others, layers, n) distances -> the same, infinite where a shared lesion explains them.

    `links` as of `suspicious_links`; `partner` (others,) which of them the subject is `linked` to.
    At least one analogue of each token stays.
    """
    drop = links & partner[:, None, None]
    drop &= ~drop.all(0, keepdim=True)
    return torch.where(drop, torch.inf, distances)


def average_of_known(distances: Tensor, k: int) -> Tensor:
    """(others, ...) distances, infinite where left out -> (...): the mean of the K smallest.

    Of fewer where fewer are known: at least one is. With none left out it is
    `similarity.interval_average`.
    """
    nearest = distances.topk(k, dim=0, largest=False).values
    known = nearest.isfinite()
    return torch.where(known, nearest, 0.0).sum(0) / known.sum(0)

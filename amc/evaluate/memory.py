"""Whether a base network was trained on the images that a search measures on.

From held-out and training images alone it cannot be known: a network that does as well on both may
have seen both, or may generalise without a gap, as one does that underfits. What tells the two
apart are images that it has certainly not seen, those for testing. They are asked only where there
is no gap between held-out and training images, for this warning, and choose nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from scipy import stats
from torch import Tensor

WORSE = 0.01  # the level at which held-out losses are above those of training images
BETTER = 0.001  # and that at which they are below those of test images


def memorised(training: Tensor, heldout: Tensor, test: Callable[[], Tensor]) -> str | None:
    """A warning where the held-out losses are not above those of training images, but below those
    of test images.

    Both are rank-sum tests (Mann-Whitney, one-sided), since losses have long tails; their levels
    hold whatever their distribution. Where held-out images are unseen and alike to test images, a
    warning is false in at most 1 of 1,000 cases (`BETTER`). Where they were trained on as
    training images were, it is missing in 1 of 100 cases (`WORSE`), and wherever there are too few
    images, or too small a gap, to tell seen from unseen ones. It may be false where test images are
    harder than training images for another reason, and the network has no gap between those it
    was trained on and the held-out ones; so the words say what was found.

    Args:
        training: the base network's cross-entropies on images that it may have been trained on
            (n,).
        heldout: on those that a search measures on (m,).
        test: gives those on test images (k,).
    """
    if _below(training, heldout) < WORSE:
        return None
    unseen = test()
    if not _below(heldout, unseen) < BETTER:  # nan, too
        return None
    means = (f"{float(losses.mean()):.3g}" for losses in (heldout, training, unseen))
    return (
        "the base network does as well on the held-out images (mean cross-entropy {}) as on "
        "training images ({}), and better than on test images ({}): it looks trained on them, "
        "which misleads a search; use weights trained without them, or name unseen images as "
        "heldout".format(*means)
    )


def _below(lower: Tensor, higher: Tensor) -> float:
    """The p value of losses being lower than others by chance alone."""
    found = stats.mannwhitneyu(lower.numpy(), higher.numpy(), alternative="less")
    return float(found.pvalue)

"""Time between any two events of a window, from the codes of the gaps between neighbours.

Enters: ``gap_BL`` of a batch. Leaves: seconds since the window's first event, and codes of differences of these.
Surprising choice: a gap's code stands for the middle of the seconds that have it, so a difference is known to half
an octave; a model that sees codes needs no more, and a batch carries no second clock.

Shape legend: B histories, L positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distft.schema import NUM_GAP_BUCKETS


def seconds_since_first(gap_BL: Tensor) -> Tensor:
    """Seconds float64 [B, L] from a window's first event to each; a gap that is not known (code 0) counts as none."""
    seconds_BL = torch.where(gap_BL > 1, torch.exp2(gap_BL.double() - 0.5) - 1, 0.0)
    return seconds_BL.cumsum(-1)


def gap_codes(seconds: Tensor) -> Tensor:
    """Codes int64 of spans of seconds, as those of gaps: see NUM_GAP_BUCKETS."""
    return (1 + torch.log2(1 + seconds.clamp(min=0)).floor().long()).clamp(max=NUM_GAP_BUCKETS - 1)

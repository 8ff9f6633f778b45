"""Windows: where a row's pending token and its drafts stand, and how many of the drafts were right.

    position    length      length + 1 ... length + drafts
    token       pending     draft 1    ... draft k
    sampled     token 1     token 2    ... token k + 1        each by the request's own draw at its position

Draft i stands when it is the token sampled before it. So what is answered is exactly what would be answered
without drafts, at any temperature: a draft saves a step and never chooses.
"""

import numpy as np

from repro.serve.kv.layout import Ints, Layout
from repro.serve.sched.rows import DeviceRows


def windows(rows: DeviceRows, members: Ints, drafts: int) -> Layout:
    """Return the windows of these rows, as the device knows their lengths now.

    A window is cut where the longest answer ends. One whose answer has ended in the step before rides
    along with its pending token alone.
    """
    firsts = rows.length[members]
    return Layout(firsts, np.clip(rows.limit[members] - 1 - firsts, 1, 1 + drafts))


def standing_tokens(layout: Layout, inputs: Ints, sampled: Ints) -> Ints:
    """Return how many of each window's sampled tokens stand, (members,): its right drafts, and one more.

    `inputs` and `sampled` are (tokens,): what was computed at each position, and what was sampled there.
    """
    right = np.zeros(len(sampled), bool)  # whether the draft behind this token is what was sampled here
    right[:-1] = sampled[:-1] == inputs[1:]
    right[layout.last_tokens] = False
    stops = np.flatnonzero(~right)
    stood: Ints = stops[np.searchsorted(stops, layout.starts)] - layout.starts + 1
    return stood

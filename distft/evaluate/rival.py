"""Another bundle's ranks of this dataset's targets: what ``evaluate --against`` compares with.

Enters: a bundle, and histories and targets in the rows of this dataset's encoder. Leaves: the ranks that the bundle's
model gives to the same targets. Surprising choice: nothing is compared by row, only by the shop's own ids and words:
histories are decoded here and encoded by the bundle, as its server would. What it does not know is not there for it: an
event of an unknown type is left out, an unknown target is a miss; and features of users are not told.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distft.data.encode import NO_TIME, UNKNOWN_WORD, Encoder, RawEvent
from distft.data.shards import Targets
from distft.errors import ArtefactError
from distft.item_vectors import stored_vectors
from distft.jobfile import parse_job
from distft.models.weights import fill, read_weights
from distft.ranking import Ranker, excluded_items
from distft.schema import ITEMLESS_EVENTS, NUM_RESERVED, ExcludeSeen, Histories
from distft.storage import Storage

VERSION_CHARS = 12


class Rival:
    """The model of a bundle, asked in the rows of another encoder."""

    def __init__(self, bundle: Storage, encoder: Encoder) -> None:
        """``encoder``: of the dataset. Raises ArtefactError if ``bundle`` is no whole bundle, or shares no item."""
        manifest = bundle.verified("bundle")
        self.version = manifest.sha256[:VERSION_CHARS]
        job = parse_job(bundle.read_bytes("job.yaml").decode(), f"{bundle.uri}/job.yaml")
        self.name = job.name
        self._ours, self._theirs = encoder, Encoder.load(bundle / "encoder")
        rows_N = self._theirs.item_rows(str(item_id) for item_id in encoder.item_ids)
        rows_N[:NUM_RESERVED] = np.arange(NUM_RESERVED)
        self._row_N = rows_N
        if not (rows_N >= NUM_RESERVED).any():
            raise _nothing_common(bundle, "item of this dataset", len(rows_N) - NUM_RESERVED)
        model = job.model.build(self._theirs.catalog())
        fill(model, read_weights(bundle))
        self._ranker = Ranker(model, job.model.max_history, self._theirs, None, stored_vectors(bundle, manifest))

    def targets(self, item_B: NDArray[np.int32]) -> NDArray[np.int32]:
        """The bundle's rows of item rows of the dataset; UNKNOWN for what one of the two does not know."""
        return self._row_N[item_B]

    def ranks(self, histories: Histories, targets: Targets, rule: ExcludeSeen) -> NDArray[np.int64]:
        """rank_B of every target among the bundle's items, from 1; beyond the last one for a miss."""
        encoded = self._encoded(histories)
        known = [self._theirs.event_names.index(name) + 1 for name in self._ours.target_events if self._knows(name)]
        excluded = excluded_items(encoded, rule, np.array(known, np.int8))
        return self._ranker.ranks(encoded, self.targets(targets.item), excluded)

    def _encoded(self, histories: Histories) -> Histories:
        if self._theirs.identity == self._ours.identity:
            return histories
        return self._theirs.encode_users([self._events(histories, i) for i in range(len(histories))])

    def _events(self, histories: Histories, index: int) -> list[RawEvent]:
        raw = self._ours.decode(histories, index, unknown=UNKNOWN_WORD)
        times = [None if not self._ours.has_clock or time == NO_TIME else time for time in raw.time_ms]
        values = self._ours.label_values(histories, index)
        columns = zip(raw.item_ids, raw.events, times, raw.queries, values, strict=True)
        events = [RawEvent(*event) for event in columns]
        return [one for one in events if self._knows(one.event) and (one.item_id or one.event in ITEMLESS_EVENTS)]

    def _knows(self, event: str) -> bool:
        return event in self._theirs.event_names


def check_common(bundle: Storage, known_T: NDArray[np.bool_]) -> None:
    """Raises ArtefactError where the bundle knows none of the targets: there is nothing to compare."""
    if not known_T.any():
        raise _nothing_common(bundle, "target of the split", len(known_T))


def _nothing_common(bundle: Storage, what: str, number: int) -> ArtefactError:
    return ArtefactError(
        f"The bundle {bundle} knows no {what}, of {number:,}",
        "a bundle of the same shop, with the same item ids",
        "Give --against another bundle.",
    )

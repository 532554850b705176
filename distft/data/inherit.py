"""The vocabulary that a job continues (``data.vocabulary.from``): the encoder of an older dataset or bundle.

Enters: the place of a dataset or bundle, and what is known of today's job before its logs are read. Leaves: that
encoder, verified, or an error that says why today's data cannot be encoded by it.

Surprising choice: the base must lie outside of the job's own storage. Inside, prepare would replace what it was made
from, and no run could ever tell that it is up to date.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distft.data.encode import Encoder
from distft.data.features import FeatureSpec, plan_features
from distft.errors import ArtefactError, UsageError
from distft.promotions import bundle_at
from distft.storage import MANIFEST, Storage

if TYPE_CHECKING:
    from distft.data.sources.base import FeatureTable
    from distft.sections.features import Encode

_KEY = "data.vocabulary.from"
_KINDS = ("dataset", "bundle")


def open_base(place: str) -> Encoder:
    """The encoder of the dataset or bundle at ``place``, whose files were found whole. Raises ArtefactError."""
    storage = bundle_at(place)
    if not storage.exists(MANIFEST):
        inside = [f"{storage}/{kind}" for kind in _KINDS if (storage / kind).exists(MANIFEST)]
        remedy = f"Did you mean {inside[-1]}?" if inside else "Correct the path, or make the base first."
        what = f"{_KEY}: there is no dataset or bundle at {storage}"
        raise ArtefactError(what, f"a folder with a {MANIFEST}", remedy)
    described = storage.read_json(MANIFEST)
    kind = described.get("kind") if isinstance(described, dict) else None
    if kind in ("train", "report", "checkpoint"):
        what = f"{_KEY}: {storage} holds a {kind}, which has no vocabulary"
        raise ArtefactError(what, "a dataset or a bundle", "Name the dataset that it was made from, or its bundle.")
    storage.verified("dataset" if kind != "bundle" else kind, below="encoder/")
    return Encoder.load(storage / "encoder")


def base_identity(place: str, root: Storage) -> str:
    """What a fingerprint holds of the base. Raises ArtefactError, and UsageError for a base below ``root``."""
    base = Storage(place)
    if f"{base.uri}/".startswith(f"{root.uri}/"):
        raise UsageError(
            f"{_KEY} is {place}, which lies in this job's own storage {root}",
            "a dataset or bundle of another storage, because this run replaces what is in its own",
            "Set another storage for this job.",
        )
    return open_base(place).identity


def check_continues(
    base: Encoder, place: str, has_clock: bool, encode: Encode, tables: tuple[FeatureTable | None, FeatureTable | None]
) -> None:
    """Raises ArtefactError unless today's clock and features are encoded with the same settings as the base's."""
    misfits = []
    if base.has_clock != has_clock:
        told = ["the base's log has timestamps, today's has none", "the base's log has no timestamps, today's has some"]
        misfits.append(told[has_clock])
    items, users = (plan_features(table, encode) if table else () for table in tables)
    misfits += _differences("item", [column.spec for column in base.features], items)
    # Users' texts are in no dataset: nothing shows them.
    misfits += _differences("user", base.user_features, [spec for spec in users if spec.kind != "text"])
    if misfits:
        raise ArtefactError(
            f"{_KEY}: the vocabulary of {place} does not fit this job: {'; '.join(misfits)}",
            "the features and the clock that the base was made with",
            "Set data.items, data.users, data.encode and the timestamp as in the base's job, or leave out "
            "data.vocabulary.",
        )


def _differences(of: str, before: Sequence[FeatureSpec], now: Sequence[FeatureSpec]) -> list[str]:
    old, new = ({spec.name: spec.settings() for spec in specs} for specs in (before, now))
    gone = [f"{of} feature {name} is in the base and not in this job" for name in old if name not in new]
    added = [f"{of} feature {name} is in this job and not in the base" for name in new if name not in old]
    changed = [
        f"{of} feature {name} has {key} {_word(old[name][key])} in the base and {_word(new[name][key])} in this job"
        for name in old
        if name in new
        for key in old[name]
        if old[name][key] != new[name][key]
    ]
    return [*gone, *added, *changed]


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

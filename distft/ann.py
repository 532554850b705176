"""An index of item vectors for catalogues too large to be scanned for every request: inverted lists, by FAISS.

Enters: the vectors of all items, and states to be measured by. Leaves: candidates for a state, found among the lists
whose centres lie nearest, and how many of the true best they hold. Surprising choice: no file of FAISS is written or
read. A bundle holds the centres and each item's list, as safetensors; the vectors are the model's, so that they cannot
differ from it, and nothing foreign is parsed. Where the model's are stored in fewer bits, so are the index's, in codes
of its own: candidates are scored again by the model's, so that a code decides who is looked at and nothing else.

Shape legend: N items, C items of a chunk, D width, B states, K results, L lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from distft.schema import NUM_RESERVED
from distft.storage import Storage

FOLDER = "index"
TRAINED_PER_LIST = 40
"""Vectors that a centre is found from; FAISS wants 39 at least."""
MAX_LISTS = 4096
SEED = 1
ROWS_AT_ONCE = 1 << 16
"""Vectors that are read in fp32 at once."""

_CODES = {16: faiss.ScalarQuantizer.QT_fp16, 8: faiss.ScalarQuantizer.QT_8bit}
_CANDIDATES = {16: 1, 8: 2}
"""How many times as many candidates are found: by codes of 8 bits one of the best may come a few places too late."""


class Stored(Protocol):
    """Vectors of all item rows in ``bits`` bits a number, of which a range or a list of rows is read in fp32."""

    @property
    def bits(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Tensor) -> Tensor: ...


Vectors = Tensor | Stored


@dataclass(frozen=True)
class IndexFacts:
    """How an index was built, and what it was measured to find: ``recall`` among the best ``k`` of a state."""

    num_lists: int
    num_probed: int
    k: int
    recall: float
    num_states: int


class Index:
    """Inverted lists over the vectors of all item rows but the reserved ones."""

    def __init__(self, vectors_ND: Vectors, centres_LD: Tensor, list_N: Tensor, facts: IndexFacts) -> None:
        self.centres_LD, self.list_N, self.facts = centres_LD, list_N, facts
        faiss.omp_set_num_threads(torch.get_num_threads())
        self._faiss = _without_items(vectors_ND, centres_LD)
        for start, v_CD in _chunks(vectors_ND):
            rows = np.arange(start, start + len(v_CD), dtype=np.int64)
            lists = list_N[start - NUM_RESERVED : start - NUM_RESERVED + len(v_CD)].numpy().astype(np.int64)
            self._faiss.add_core(len(rows), *(faiss.swig_ptr(some) for some in (v_CD, rows, lists)))
        self.num_probed = facts.num_probed
        self._candidates = 1 if isinstance(vectors_ND, Tensor) else _CANDIDATES[vectors_ND.bits]

    @property
    def bytes_per_item(self) -> int:
        """What a vector takes, without the item's number."""
        return int(self._faiss.code_size)

    @classmethod
    def build(cls, vectors_ND: Vectors, states_BD: Tensor, k: int, min_recall: float) -> Index:
        """An index that probes as few lists as find ``min_recall`` of the best ``k`` items of the given states.

        The states should be real ones: how near to each other their best items lie is what the recall depends on.
        """
        centres_LD = _centres(vectors_ND)
        nearest = _flat(centres_LD)
        list_N = torch.from_numpy(np.concatenate([nearest.search(v_CD, 1)[1][:, 0] for _, v_CD in _chunks(vectors_ND)]))
        index = cls(vectors_ND, centres_LD, list_N, IndexFacts(len(centres_LD), 1, k, 0.0, len(states_BD)))
        best_BK = _best(vectors_ND, states_BD, k)
        while True:
            recall = recall_of(index.search(states_BD, k), best_BK)
            if recall >= min_recall or index.num_probed >= len(centres_LD):
                break
            index.num_probed = min(len(centres_LD), max(index.num_probed + 1, int(index.num_probed * 1.25)))
        index.facts = IndexFacts(len(centres_LD), index.num_probed, k, round(recall, 4), len(states_BD))
        return index

    def search(self, states_BD: Tensor, k: int, kept_N: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """rows_BK: candidates for each state, ``k`` or more, best first; -1 where the lists held fewer.

        ``kept_N``: the item rows that may be found, None for all.
        """
        # FAISS's stubs do not know of the arguments that its Python classes take.
        bits = None if kept_N is None else np.packbits(kept_N, bitorder="little")
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]
        how = faiss.SearchParametersIVF(nprobe=self.num_probed, sel=selector)  # type: ignore[call-arg]
        rows_BK: NDArray[np.int64] = self._faiss.search(_array(states_BD), self._candidates * k, params=how)[1]
        return rows_BK

    def save(self, bundle: Storage) -> None:
        """Writes ``index/`` into a bundle."""
        tensors = {"centres": self.centres_LD.contiguous(), "lists": self.list_N.to(torch.int32)}
        bundle.write_bytes(f"{FOLDER}/lists.safetensors", save(tensors))
        bundle.write_json(f"{FOLDER}/index.json", asdict(self.facts))

    @classmethod
    def load(cls, bundle: Storage, vectors_ND: Vectors) -> Index:
        """The index of a bundle that has one."""
        tensors = load(bundle.read_bytes(f"{FOLDER}/lists.safetensors"))
        facts: dict[str, Any] = bundle.read_json(f"{FOLDER}/index.json")
        return cls(vectors_ND, tensors["centres"], tensors["lists"].long(), IndexFacts(**facts))


def recall_of(found_BK: NDArray[np.int64], best_BK: NDArray[np.int64]) -> float:
    """The share of the best rows that were found."""
    hits = sum(len(np.intersect1d(found, best)) for found, best in zip(found_BK, best_BK, strict=True))
    return hits / best_BK.size


def _without_items(vectors_ND: Vectors, centres_LD: Tensor) -> Any:
    """Empty lists for vectors in as many bits as these."""
    num_lists, width = centres_LD.shape
    lists: Any
    if isinstance(vectors_ND, Tensor):
        lists = faiss.IndexIVFFlat(_flat(centres_LD), width, num_lists, faiss.METRIC_INNER_PRODUCT)
    else:
        code = _CODES[vectors_ND.bits]
        lists = faiss.IndexIVFScalarQuantizer(
            _flat(centres_LD), width, num_lists, code, faiss.METRIC_INNER_PRODUCT, False
        )
        if vectors_ND.bits == 8:  # what FAISS would learn from a sample: where the 256 codes of a column begin and end
            low_D, high_D = _bounds(vectors_ND)
            faiss.copy_array_to_vector(np.concatenate([low_D, high_D - low_D]), lists.sq.trained)
    lists.is_trained = True
    return lists


def _bounds(vectors_ND: Vectors) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(lowest_D, highest_D) number of each column."""
    lowest, highest = zip(*((v_CD.min(0), v_CD.max(0)) for _, v_CD in _chunks(vectors_ND)), strict=True)
    return np.min(lowest, 0), np.max(highest, 0)


def _flat(centres_LD: Tensor) -> Any:
    """Finds the nearest centres of a vector."""
    flat = faiss.IndexFlatIP(centres_LD.shape[1])
    flat.add(_array(centres_LD))
    return flat


def _chunks(vectors_ND: Vectors) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, v_CD) of all but the reserved rows."""
    for start in range(NUM_RESERVED, len(vectors_ND), ROWS_AT_ONCE):
        yield start, _array(vectors_ND[start : min(start + ROWS_AT_ONCE, len(vectors_ND))])


def _best(vectors_ND: Vectors, states_BD: Tensor, k: int) -> NDArray[np.int64]:
    """rows_BK of the best items of each state, by a scan."""
    states, num_states = _array(states_BD), len(states_BD)
    best_BK = np.full((num_states, k), -np.inf, np.float32)
    rows_BK = np.full((num_states, k), -1, np.int64)
    for start, v_CD in _chunks(vectors_ND):
        s_Bk, column_Bk = faiss.knn(states, v_CD, min(k, len(v_CD)), metric=faiss.METRIC_INNER_PRODUCT)
        s_BM, row_BM = np.concatenate([best_BK, s_Bk], 1), np.concatenate([rows_BK, column_Bk + start], 1)
        order_BK = np.argsort(-s_BM, 1, kind="stable")[:, :k]
        best_BK, rows_BK = np.take_along_axis(s_BM, order_BK, 1), np.take_along_axis(row_BM, order_BK, 1)
    return rows_BK


def _centres(vectors_ND: Vectors) -> Tensor:
    """centres_LD by k-means over a sample; about the square root of N lists times four, as FAISS advises."""
    num_items = len(vectors_ND) - NUM_RESERVED
    num_lists = max(1, min(MAX_LISTS, int(4 * num_items**0.5), num_items // TRAINED_PER_LIST))
    rng = np.random.default_rng(SEED)
    rows = np.sort(rng.permutation(num_items)[: num_lists * TRAINED_PER_LIST]) + NUM_RESERVED
    sample = _array(vectors_ND[torch.from_numpy(rows)])
    means = faiss.Kmeans(sample.shape[1], num_lists, niter=10, seed=SEED, spherical=False)
    means.train(sample)
    return torch.from_numpy(np.array(means.centroids))


def _array(vectors: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors.detach().numpy(), np.float32)

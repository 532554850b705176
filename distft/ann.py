"""An index of item vectors for catalogues too large to be scanned for every request: inverted lists, by FAISS.

Enters: the vectors of all items, and states to be measured by. Leaves: candidates for a state, found among the lists
whose centres lie nearest, and how many of the true best they hold. Surprising choice: no file of FAISS is written or
read. A bundle holds the centres and each item's list, as safetensors; the vectors are the model's, so that they cannot
differ from it, and nothing foreign is parsed.

Shape legend: N items, D width, B states, K results, L lists.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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

    def __init__(self, vectors_ND: Tensor, centres_LD: Tensor, list_N: Tensor, facts: IndexFacts) -> None:
        self.centres_LD, self.list_N, self.facts = centres_LD, list_N, facts
        faiss.omp_set_num_threads(torch.get_num_threads())
        quantizer = faiss.IndexFlatIP(vectors_ND.shape[1])
        quantizer.add(_array(centres_LD))
        self._faiss = faiss.IndexIVFFlat(quantizer, vectors_ND.shape[1], len(centres_LD), faiss.METRIC_INNER_PRODUCT)
        self._faiss.is_trained = True
        rows = np.arange(NUM_RESERVED, len(vectors_ND), dtype=np.int64)
        vectors, lists = _array(vectors_ND[NUM_RESERVED:]), np.ascontiguousarray(list_N.numpy(), np.int64)
        pointers = [faiss.swig_ptr(some) for some in (vectors, rows, lists)]
        self._faiss.add_core(len(rows), *pointers)
        self.num_probed = facts.num_probed

    @classmethod
    def build(cls, vectors_ND: Tensor, states_BD: Tensor, k: int, min_recall: float) -> Index:
        """An index that probes as few lists as find ``min_recall`` of the best ``k`` items of the given states.

        The states should be real ones: how near to each other their best items lie is what the recall depends on.
        """
        centres_LD = _centres(vectors_ND)
        nearest = faiss.IndexFlatIP(vectors_ND.shape[1])
        nearest.add(_array(centres_LD))
        list_N = torch.from_numpy(nearest.search(_array(vectors_ND[NUM_RESERVED:]), 1)[1][:, 0])
        index = cls(vectors_ND, centres_LD, list_N, IndexFacts(len(centres_LD), 1, k, 0.0, len(states_BD)))
        exact = faiss.IndexFlatIP(vectors_ND.shape[1])
        exact.add(_array(vectors_ND[NUM_RESERVED:]))
        best_BK = exact.search(_array(states_BD), k)[1] + NUM_RESERVED
        while True:
            recall = recall_of(index.search(states_BD, k), best_BK)
            if recall >= min_recall or index.num_probed >= len(centres_LD):
                break
            index.num_probed = min(len(centres_LD), max(index.num_probed + 1, int(index.num_probed * 1.25)))
        index.facts = IndexFacts(len(centres_LD), index.num_probed, k, round(recall, 4), len(states_BD))
        return index

    def search(self, states_BD: Tensor, k: int, kept_N: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """rows_BK: candidates for each state, best first by their product; -1 where the lists held fewer.

        ``kept_N``: the item rows that may be found, None for all.
        """
        # FAISS's stubs do not know of the arguments that its Python classes take.
        bits = None if kept_N is None else np.packbits(kept_N, bitorder="little")
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]
        how = faiss.SearchParametersIVF(nprobe=self.num_probed, sel=selector)  # type: ignore[call-arg]
        rows_BK: NDArray[np.int64] = self._faiss.search(_array(states_BD), k, params=how)[1]
        return rows_BK

    def save(self, bundle: Storage) -> None:
        """Writes ``index/`` into a bundle."""
        tensors = {"centres": self.centres_LD.contiguous(), "lists": self.list_N.to(torch.int32)}
        bundle.write_bytes(f"{FOLDER}/lists.safetensors", save(tensors))
        bundle.write_json(f"{FOLDER}/index.json", asdict(self.facts))

    @classmethod
    def load(cls, bundle: Storage, vectors_ND: Tensor) -> Index:
        """The index of a bundle that has one."""
        tensors = load(bundle.read_bytes(f"{FOLDER}/lists.safetensors"))
        facts: dict[str, Any] = bundle.read_json(f"{FOLDER}/index.json")
        return cls(vectors_ND, tensors["centres"], tensors["lists"].long(), IndexFacts(**facts))


def recall_of(found_BK: NDArray[np.int64], best_BK: NDArray[np.int64]) -> float:
    """The share of the best rows that were found."""
    hits = sum(len(np.intersect1d(found, best)) for found, best in zip(found_BK, best_BK, strict=True))
    return hits / best_BK.size


def _centres(vectors_ND: Tensor) -> Tensor:
    """centres_LD by k-means over a sample; about the square root of N lists times four, as FAISS advises."""
    vectors = _array(vectors_ND[NUM_RESERVED:])
    num_lists = max(1, min(MAX_LISTS, int(4 * len(vectors) ** 0.5), len(vectors) // TRAINED_PER_LIST))
    rng = np.random.default_rng(SEED)
    sample = vectors[np.sort(rng.permutation(len(vectors))[: num_lists * TRAINED_PER_LIST])]
    means = faiss.Kmeans(vectors.shape[1], num_lists, niter=10, seed=SEED, spherical=False)
    means.train(sample)
    return torch.from_numpy(np.array(means.centroids))


def _array(vectors: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors.detach().numpy(), np.float32)

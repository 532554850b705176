from __future__ import annotations

import numpy as np
import pyarrow as pa

from distft.data.exchange import num_partitions, partition_of
from distft.data.hashing import hash_ids, hash_texts, key, mix, permutation, uniform


def test_hashes_are_those_of_the_published_algorithms() -> None:
    """The first outputs of SplitMix64 from state 0, as its authors give them."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.array([0, golden], np.uint64)
    assert mix(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_ids_keep_their_partition_for_ever() -> None:
    assert hash_ids(["", "u1", "漢"]).tolist() == [int(mix(np.array([crc], np.uint64))[0]) for crc in (
        0, 0x424F9F76, 0x22865670,
    )]  # fmt: skip


def test_texts_hash_side_by_side_as_they_do_one_by_one() -> None:
    ids = ["", "u1", "漢", "", "a" * 100, *(f"user-{number}" for number in range(0, 5000, 7))]
    texts = pa.array(ids, pa.string())
    assert hash_texts(texts).tolist() == hash_ids(ids).tolist()
    assert hash_texts(texts[3:6]).tolist() == hash_ids(ids[3:6]).tolist()
    assert hash_texts(texts[:1]).tolist() == hash_ids([""]).tolist()


def test_partitions_are_balanced() -> None:
    counts = np.bincount(partition_of(pa.array([f"user-{number}" for number in range(64_000)]), 64), minlength=64)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_the_number_of_partitions_follows_the_size_of_the_logs() -> None:
    gib = 1 << 30
    assert [num_partitions(size) for size in (0, 1, 8 * gib, 8 * gib + 1, 20 * gib)] == [64, 64, 64, 128, 192]


def test_permutations_are_complete_and_keyed() -> None:
    assert sorted(permutation(7, 100).tolist()) == list(range(100))
    assert permutation(7, 100).tolist() != permutation(8, 100).tolist()
    assert key(1, 2) != key(2, 1)
    draws = uniform(mix(np.arange(10_000, dtype=np.uint64)))
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1

"""The public data sets that ``distft data fetch`` knows: where they come from, their terms, and their hashes.

Nothing enters; ``CATALOGUE`` leaves. The hash of a file is that of its content: of what a ``.gz`` holds, so that
a file that somebody compressed again is still the same file. None of the data is part of distft.
"""

from __future__ import annotations

from dataclasses import dataclass

_SASREC = "https://raw.githubusercontent.com/kang205/SASRec/master/data"
_S3REC = "https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/master/data"
_ML_1M = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
_ML_100K = "https://recbole.s3-accelerate.amazonaws.com/ProcessedDatasets/MovieLens/ml-100k.zip"
_ONLINE_RETAIL = "https://archive.ics.uci.edu/static/public/352/online+retail.zip"

_GROUPLENS = (
    "GroupLens: for research; acknowledge it in publications; no redistribution, and no commercial use without "
    "permission."
)
_UCI = "CC BY 4.0: free for any use that credits Daqing Chen, UCI Machine Learning Repository, 2015."
_JDATA = "Unclear: it comes from a competition that asks its participants to agree to its rules. For tests only."
_TIANCHI = "Tianchi: for research, after agreeing to its terms on the home page."
_MCAULEY = "Published by Julian McAuley, UCSD, for research; cite his papers that the home page names."

_JDATA_HOW = (
    "It can be downloaded only by those who are signed in and agree to the rules. These files are a slice of it, "
    "2018-03-01 to 03-03."
)
_TAOBAO_HOW = (
    "It can be downloaded only by those who are signed in and agree to the terms. This file is a slice of it; a job "
    "can read the whole UserBehavior.csv just as well, from any folder."
)


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    ``sha256`` and ``num_bytes`` are of its content (of what a ``.gz`` holds). ``url`` is its open address, empty
    where there is none; ``member`` is its name in the zip archive at that address. ``optional``: a folder or
    mirror need not have it. ``made_from``: it is not brought but made of these files, which stand before it
    (``derived.py``).
    """

    name: str
    sha256: str
    num_bytes: int
    url: str = ""
    member: str = ""
    optional: bool = False
    made_from: tuple[str, ...] = ()

    @property
    def from_workbook(self) -> bool:
        """True if the publisher's file is an Excel workbook that is turned into this CSV."""
        return self.member.endswith(".xlsx")


@dataclass(frozen=True)
class CatalogueEntry:
    """One data set; ``how`` tells where to get it when it has no open address."""

    name: str
    title: str
    home: str
    licence: str
    files: tuple[DataFile, ...]
    how: str = ""


_ENTRIES = (
    CatalogueEntry(
        "ml-1m",
        "MovieLens-1M: 6,040 users, 1 million ratings; raw, and in the order of the SASRec papers",
        "https://grouplens.org/datasets/movielens/1m/",
        _GROUPLENS,
        (
            DataFile(
                "ml-1m_sas.txt",
                "b725f3acb3986fe3130bffd1e77a74d182a1f51799567a236dbd60270f95b0a2",
                9_053_831,
                _SASREC + "/ml-1m.txt",
            ),
            DataFile(
                "movies.dat",
                "0140fc2356357c1a851d0f52e893a1e4d3696df632c4141cea8d5bc3d621f0b9",
                171_308,
                _ML_1M,
                "movies.dat",
            ),
            DataFile(
                "users.dat",
                "1dc3a95300cb19f7c10e027daf29b8cdf1d908dab65b5edfb45950aa389a10a3",
                134_368,
                _ML_1M,
                "users.dat",
            ),
            DataFile(
                "ratings.dat",
                "506d64ca44484487c11dc2d9a28de5c54948213e6b96285e298afe28d6ea4e0f",
                24_594_131,
                _ML_1M,
                "ratings.dat",
                optional=True,
            ),
            DataFile(
                "README_GroupLens.txt",
                "2d5ddce86ccbd247207456165827b4b9ddf27282bca93807d4c763e28414f133",
                5_577,
                _ML_1M,
                "README",
                optional=True,
            ),
            DataFile(
                "sas_to_original_items.txt",
                "9ae42c23af0b0fe2f189b9d5acc6cf3936bffe1a9568390cf5d100c0c1b1fca1",
                32_109,
                optional=True,
            ),
            DataFile(
                "sas_to_original_users.txt",
                "121893a66ab13fad83a67e12e3b3e6ddc56bcd01f0bcedf2ccb10bd8405e6239",
                58_186,
                optional=True,
            ),
        ),
    ),
    CatalogueEntry(
        "ml-100k",
        "MovieLens-100k: 943 users, 100,000 ratings with times and features, in RecBole's layout",
        "https://grouplens.org/datasets/movielens/100k/",
        _GROUPLENS,
        (
            DataFile(
                "ml-100k.inter",
                "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                1_979_230,
                _ML_100K,
                "ml-100k.inter",
            ),
            DataFile(
                "ml-100k.item",
                "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                66_632,
                _ML_100K,
                "ml-100k.item",
            ),
            DataFile(
                "ml-100k.user",
                "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
                22_697,
                _ML_100K,
                "ml-100k.user",
            ),
        ),
    ),
    CatalogueEntry(
        "online-retail",
        "Online Retail: 541,909 invoice rows of a UK gift shop, 2010-12 to 2011-12",
        "https://archive.ics.uci.edu/dataset/352/online+retail",
        _UCI,
        (
            DataFile(
                "online_retail.csv.gz",
                "c35975c40d0e1e105090fbb11188a409393055f873841bd012915475fc84e69f",
                48_039_726,
                _ONLINE_RETAIL,
                "Online Retail.xlsx",
            ),
        ),
    ),
    CatalogueEntry(
        "jdata",
        "JData: three days of views, orders, follows and comments of a Chinese shop, and its knowledge graph",
        "https://jdata.jd.com/",
        _JDATA,
        (
            DataFile(
                "train.csv",
                "5219c3e3f9f05a7e680ea3fbe29c42e33580ed361de828054f7ed7ec145e3413",
                1_491_596,
            ),
            DataFile(
                "test.csv",
                "546c45982a3441a2207e48043b45ae6862640590aea840b4095b988f6797ba38",
                125_359,
            ),
            DataFile(
                "kg2id",
                "581c3b8b763531b1b6ce3b3f6b1244f843dc71bc4176c40598e287acdf622c5c",
                681_971,
            ),
            DataFile(
                "entity2id",
                "303ea8c6779912aa3a8c3c148603cb12e9042841cbb9a0e7857e8c45291891eb",
                295_262,
            ),
            DataFile(
                "relation2id",
                "4b82f8e199a132d0d01d6a61dd41dcf69d67863257f0162ea5b7c1f381888e77",
                62,
            ),
            DataFile(
                "items.csv",
                "b5d5696694d34676c71984f2de6c79efe799cc6f9224b72e3159f78b43600d6c",
                341_839,
                made_from=("entity2id", "relation2id", "kg2id"),
            ),
        ),
        _JDATA_HOW,
    ),
    CatalogueEntry(
        "taobao",
        "Taobao user behaviour: two hours of a marketplace, 58,732 users, views to purchases",
        "https://tianchi.aliyun.com/dataset/649",
        _TIANCHI,
        (
            DataFile(
                "UserBehavior.csv",
                "cbd2f1a5f201947d25b8a2f2af397e51bb01721be24cdf27f27f7b3f224cc0ba",
                3_526_632,
            ),
        ),
        _TAOBAO_HOW,
    ),
    CatalogueEntry(
        "amazon-beauty",
        "Amazon Beauty 5-core: 22,363 users, 198,502 events in order, in the S3-Rec layout",
        "https://jmcauley.ucsd.edu/data/amazon/",
        _MCAULEY,
        (
            DataFile(
                "Beauty.txt",
                "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
                1_090_094,
                _S3REC + "/Beauty.txt",
            ),
            DataFile(
                "Beauty_item2attributes.json",
                "129e40f67486f6877eff0f5318cfa8530ee8ac23d8b0d1de04e1bb7a2ba0b2d4",
                305_674,
                _S3REC + "/Beauty_item2attributes.json",
            ),
        ),
    ),
)

CATALOGUE: dict[str, CatalogueEntry] = {entry.name: entry for entry in _ENTRIES}

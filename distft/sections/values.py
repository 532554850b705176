"""The values of keys: what they are checked for, and what is said when they do not pass."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from distft.component import MAX_COUNT
from distft.schema import METRIC_PATTERN, POINTWISE_METRICS, RANKING_METRICS

MAX_DAYS = 36_500


def hint(name: str, known: Sequence[str]) -> str:
    """The nearest known name as the end of a message; empty where none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _metric(name: str) -> str:
    if not METRIC_PATTERN.match(name):
        family, at, k = name.partition("@")
        near = difflib.get_close_matches(family, RANKING_METRICS if at else POINTWISE_METRICS, n=1, cutoff=0.5)
        place = k if k.isdecimal() and int(k) else 10
        hint = f"; did you mean '{near[0]}{at}{place if at else k}'?" if near else ""
        raise ValueError(f"expected a metric such as ndcg@10, hr@10, mrr@10, recall@10 or loss{hint}")
    return name


def _name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN[1:-1], name):
        raise ValueError("expected 1 to 63 lower-case letters, digits and dashes, with no dash at either end")
    return name


def checked_storage(text: str) -> str:
    """The text of a storage, unchanged; raises ValueError, in words, for one that would name another place."""
    if not text.strip():
        raise ValueError("expected a folder or a URI, this is empty")
    if text != text.strip() or any(character < " " for character in text):
        raise ValueError("expected a folder or a URI without spaces around it or control characters in it")
    if re.match(r"^[a-zA-Z0-9+.-]+://[^/]*:[^/]*@", text):
        raise ValueError("expected no password in it, since it stands in every artefact: name it in the environment")
    if text.startswith(("~", "$")):
        raise ValueError(f"expected the whole path: {text.split('/')[0]} is not expanded here")
    scheme, colon, rest = text.partition(":")
    if not colon or not re.match(r"^[A-Za-z][A-Za-z0-9+.-]+$", scheme) or not rest.startswith("/"):
        return text
    if scheme != scheme.lower():
        raise ValueError(f"expected a scheme in lower case: {scheme.lower()}:{rest}")
    if scheme == "file" and not re.match(r"^///[^/]", rest):
        raise ValueError(f"expected three slashes and the whole path: file:///{rest.lstrip('/')}")
    if not re.match(r"^//[^/]", rest) and scheme not in ("file", "hdfs", "viewfs"):
        raise ValueError(f"expected two slashes and a name: {scheme}://{rest.lstrip('/') or 'bucket/folder'}")
    return text


def _number_of_workers(value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
    """One message for whatever is wrong, instead of one for each form that the key may have."""
    try:
        found = parse(value)
    except ValidationError:
        found = 0
    low, high = found if isinstance(found, tuple) else (found, found)
    if not 1 <= low <= high <= MAX_COUNT:
        raise ValueError("expected a whole number of at least 1, or [min, max] in that order for elastic training")
    return found


def _quantiles(value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
    """One message for whatever is wrong."""
    try:
        low, high = parse(value)
    except ValidationError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise ValueError("expected [low, high], shares from 0 to 1 in that order, such as [0.01, 0.99]")
    return low, high


def no_boolean(value: Any) -> Any:
    """In Python true equals 1, so that a literal 1 lets it pass."""
    return str(value).lower() if isinstance(value, bool) else value


def _use_gpu(value: Any) -> Any:
    if not isinstance(value, bool) and value != "auto":
        raise ValueError("expected true, false or auto")
    return value


def _mlflow_uri(text: str) -> str:
    found = re.match(r"^(sqlite|mysql|postgresql|mssql|https?)(\+[a-z0-9]+)?://(.+)$", text)
    if found is None:
        raise ValueError("expected sqlite:///FILE, or an MLflow server such as http://host:5000")
    if found[1] == "sqlite":
        if not re.match(r"^/[^/]|^//[^/]", found[3]):
            raise ValueError("expected three slashes and a path (sqlite:///runs/mlflow.db), or four and a whole path")
    elif re.search(r"[@?#]", found[3]):
        raise ValueError(
            "expected no user, password or parameters in it, since it stands in every artefact: a server's come from "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, a database's from its driver's own files"
        )
    return text


NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
Name = Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": NAME_PATTERN})]
StorageText = Annotated[str, AfterValidator(checked_storage), Field(json_schema_extra={"minLength": 1})]
MlflowUri = Annotated[str, AfterValidator(_mlflow_uri)]
Metric = Annotated[str, AfterValidator(_metric)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Rank = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NumWorkers = Annotated[int | tuple[int, int], WrapValidator(_number_of_workers)]
Quantiles = Annotated[tuple[float, float], WrapValidator(_quantiles)]
UseGpu = Annotated[bool | Literal["auto"], BeforeValidator(_use_gpu)]

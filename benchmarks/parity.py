"""Served scores against evaluated scores, over HTTP.

Run:  .venv/bin/python benchmarks/parity.py runs/quickstart/bundle

Starts the service of a bundle and sends it the histories of its golden requests: up to 200 users of the test split,
with the scores that the evaluator's ranking code gave at export. Writes ``benchmarks/results/parity.json``.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

from distft.serve.server import serving
from distft.storage import Storage

PORT = 8123


def main() -> None:
    bundle = sys.argv[1]
    golden = [json.loads(line) for line in Storage(bundle).read_bytes("golden_requests.jsonl").splitlines()]
    worst, same_lists = 0.0, 0
    with serving(bundle, port=PORT) as service:
        for line in golden:
            request = urllib.request.Request(f"{service.url}/v1/recommend", json.dumps(line["request"]).encode())
            with urllib.request.urlopen(request, timeout=30) as response:
                items = json.loads(response.read())["items"]
            expected = line["items"]
            assert len(items) == len(expected)
            same_lists += [item["item_id"] for item in items] == [item["item_id"] for item in expected]
            pairs = zip(items, expected, strict=True)
            worst = max([worst, *(abs(served["score"] - evaluated["score"]) for served, evaluated in pairs)])
    result = {
        "command": f"benchmarks/parity.py {bundle}",
        "users": len(golden),
        "items_per_list": len(golden[0]["items"]),
        "largest_score_difference": worst,
        "equal_lists": same_lists,
    }
    out = Path(__file__).parent / "results" / "parity.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

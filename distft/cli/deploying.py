"""The verb of a running service: exchange its model, with a guard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distft.cli.root import app
from distft.cli.session import AsJson, checked_place, session
from distft.errors import RefusedError, UsageError


@app.command()
def deploy(  # noqa: PLR0913  one parameter an option
    bundle: Annotated[
        str | None, typer.Argument(metavar="[BUNDLE]", help="bundle folder or URI; not with --rollback")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="DIR", show_default="RAY_ADDRESS", help="the --state of a service of this machine"),
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="back to the model before this one")] = False,
    shadow: Annotated[bool, typer.Option("--shadow", help="first mirror real requests to the new model")] = False,
    canary: Annotated[
        str | None, typer.Option(metavar="SHARE", help="first let it answer a share of the requests, such as 10%")
    ] = None,
    for_: Annotated[float, typer.Option("--for", metavar="SECONDS", min=1, help="of --shadow and of --canary")] = 60.0,
    min_metric: Annotated[
        float, typer.Option("--min-metric", min=0, max=1, help="ndcg@10 on its golden requests")
    ] = 0.0,
    min_of_running: Annotated[
        float, typer.Option("--min-of-running", min=0, help="its ndcg@10, as a share of the running model's")
    ] = 0.95,
    min_items: Annotated[
        float, typer.Option("--min-items", min=0, max=1, help="share of the running model's items that it knows")
    ] = 0.9,
    min_of_before: Annotated[
        float, typer.Option("--min-of-before", min=0, help="ndcg@10, as a share of the running model's evaluation")
    ] = 0.5,
    min_coverage: Annotated[
        float, typer.Option("--min-coverage", min=0, help="items that it recommends, as a share of the running model's")
    ] = 0.5,
    max_latency_ms: Annotated[
        float | None,
        typer.Option("--max-latency-ms", min=0, show_default="serve.target_latency_s", help="of 95% of its answers"),
    ] = None,
    json: AsJson = False,
) -> None:
    """Promote a bundle on a running service: beside the old model, checked, then exchanged without a gap."""
    with session(json, "Interrupted. The service goes on with the model that it had.") as terminal:
        if rollback == (bundle is not None):
            what = "--rollback and a bundle are both given" if rollback else "There is no bundle to deploy"
            raise UsageError(what, "a bundle, or --rollback", "See distft deploy --help.")
        share = None if canary is None else _share(canary)
        if bundle is not None:
            checked_place("BUNDLE", bundle)
        from distft.cluster import WAY, connect, go_way, is_remote
        from distft.deploy.checks import Limits
        from distft.storage import Storage
        from distft.terminal import results
        from distft.terminal.progress import watching

        folder = None if state is None else Storage(checked_place("--state", state))
        if not is_remote():
            if folder is None:
                what, remedy = "No service is named", "Its folder is called service and lies beside its bundle."
                raise UsageError(what, "--state DIR of one on this machine, or RAY_ADDRESS of its cluster", remedy)
            go_way(Path(folder.uri if folder.is_local else ".") / WAY)
        seconds = None if max_latency_ms is None else max_latency_ms / 1000
        limits = Limits(min_metric, min_of_before, min_of_running, min_items, min_coverage, seconds)
        with watching(terminal, "looking for the service") as watcher, connect():
            from distft.deploy import promotion
            from distft.deploy.live import TrialPlan

            plans = [TrialPlan("shadow", 1.0, for_)] if shadow else []
            plans += [TrialPlan("canary", share, for_)] if share is not None else []
            refused: RefusedError | None = None
            try:
                if bundle is None:
                    verdict = promotion.roll_back(folder, watcher.progress)
                else:
                    verdict = promotion.deploy(Storage(bundle), limits, plans, folder, watcher.progress)
            except RefusedError as error:
                refused = error
        if refused:
            results.checks(terminal, refused.details or {})
            raise refused
        results.deployment(terminal, verdict.to_json())
        terminal.result(verdict.to_json())


def _share(text: str) -> float:
    """10% or 0.1 as a share. Raises UsageError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"--canary is {text!r}", "a share such as 10%", "Correct it.")
    return share

"""Verbs of a bundle: lists for everybody, the service, its keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from distft.cli.root import app, group
from distft.cli.session import AsJson, BundlePath, checked_place, session
from distft.errors import EXIT_INTERRUPTED, UsageError

keys_app = group("keys", "API keys of a service: make, list, revoke.")


@app.command()
def recommend(  # noqa: PLR0913  one parameter an option
    bundle: BundlePath,
    histories: Annotated[
        str | None,
        typer.Option(metavar="DIR", show_default="the bundle's", help="Parquet files with a row a user"),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", show_default="recommendations/ beside the bundle", help="where lists are written"),
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="K", help="items for each user")] = 20,
    exclude_seen: Annotated[
        str | None,
        typer.Option(
            "--exclude-seen", metavar="all|targets|none", show_default="as evaluated", help="items of the history"
        ),
    ] = None,
    deny: Annotated[
        str | None, typer.Option(metavar="FILE", help="items never to be recommended, an id a line")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="score everybody again, whatever there is")] = False,
    json: AsJson = False,
) -> None:
    """Write what to recommend to every user of a bundle's histories, with Ray Data, as Parquet."""
    with session(json) as terminal:
        checked_place("BUNDLE", bundle)
        from distft.storage import Storage

        place = None if histories is None else Storage(checked_place("--histories", histories))
        beside = f"{Storage(bundle).uri.rpartition('/')[0]}/recommendations"
        into = beside if out is None else checked_place("--out", out)
        from distft.cluster import connect
        from distft.recommend.recommend import Task, Wanted
        from distft.recommend.recommend import recommend as score
        from distft.schema import ExcludeSeen
        from distft.serve.denylist import read_deny_list
        from distft.terminal.progress import watching

        rule = cast("ExcludeSeen | None", exclude_seen)
        if rule is not None and rule not in get_args(ExcludeSeen):
            raise UsageError(f"--exclude-seen is {rule!r}", " or ".join(get_args(ExcludeSeen)))
        denied = read_deny_list(Path(deny)) if deny is not None else ()
        task = Task.of(Storage(bundle), place, Wanted(k, rule, denied))
        with watching(terminal, "starting Ray") as watcher, connect():
            found = score(task, Storage(into), force=force, progress=watcher.progress)
        terminal.texts("recommendations", [(key.replace("_", " "), str(value)) for key, value in found.items()])
        terminal.result(found)


@app.command()
def serve(  # noqa: PLR0913  one parameter an option
    bundle: BundlePath,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, show_default="8000; with --probe any free one", help="HTTP port")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    probe: Annotated[
        bool, typer.Option("--probe", help="answer one request of the bundle over HTTP, then stop")
    ] = False,
    history: Annotated[
        str | None, typer.Option(metavar="embedded|none|redis://…", help="in the place of the job's serve.history")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="DIR", show_default="service/ beside the bundle", help="for histories and the event log"),
    ] = None,
    pseudonym_key: Annotated[
        str | None, typer.Option("--pseudonym-key", metavar="FILE", help="key of data.pseudonyms, where it lies here")
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(metavar="FILE", show_default="one key, made and shown at the start", help="file of API keys"),
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="answer without API keys; on loopback alone")] = False,
    tls_cert: Annotated[
        str | None, typer.Option("--tls-cert", metavar="FILE", help="HTTPS with this certificate (PEM)")
    ] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="its private key (PEM)")] = None,
    request_log: Annotated[
        str | None, typer.Option("--request-log", metavar="FILE", help="write a line for every request")
    ] = None,
    log_users: Annotated[bool, typer.Option("--log-users", help="the request log may name users")] = False,
    deny: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="items never to be recommended, an id a line; followed"),
    ] = None,
    trusted_key: Annotated[
        str | None, typer.Option("--trusted-key", metavar="FILE", help="serve only what its other half signed")
    ] = None,
    json: AsJson = False,
) -> None:
    """Serve a bundle over HTTP with Ray Serve until interrupted."""
    with session(json, "Stopped.") as terminal, ExitStack() as running:
        checked_place("BUNDLE", bundle)
        from distft.serve.arrangement import Options
        from distft.serve.server import DEFAULT_PORT, default_state, free_port, serving
        from distft.terminal import results
        from distft.terminal.progress import watching

        folder = None if state is None else checked_place("--state", state)
        if folder is None and not probe:
            folder = default_state(bundle)
        secret, keys = running.enter_context(_access(keys, no_auth))
        tls = _certificate(tls_cert, tls_key)
        options = Options(history, folder, pseudonym_key, keys, request_log, log_users, tls, deny, trusted_key)

        listen = port or (free_port(host) if probe else DEFAULT_PORT)
        with watching(terminal, "starting the service") as watcher:
            service = running.enter_context(serving(bundle, host, listen, watcher.progress, options))
        pages = f"demo: {service.url}/demo, API: {service.url}/docs"
        terminal.say(f"serving {service.model_version} at {service.url}   ({pages})")
        if probe:
            results.exchange(terminal, *service.probe(secret))
        else:
            if secret:
                terminal.say(f"API key until it ends (--keys FILE for lasting ones): {secret}")
            terminal.result(
                {"url": service.url, "model_version": service.model_version} | ({"api_key": secret} if secret else {})
            )
            with suppress(KeyboardInterrupt):  # the usual end of a service, not of a command that had more to do
                service.wait()
            running.close()
            terminal.say("Stopped.")
            raise typer.Exit(EXIT_INTERRUPTED)


def _certificate(certificate: str | None, key: str | None) -> Any:
    from distft.serve.tls import Certificate

    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("Of --tls-cert and --tls-key one is missing", "both", "Give the other one too.")
    return Certificate(certificate, key)


@contextmanager
def _access(keys: str | None, no_auth: bool) -> Iterator[tuple[str | None, str | None]]:
    """(an API key, if one is made for this run alone; the file of keys, or None where none are asked for)."""
    if no_auth and keys is not None:
        raise UsageError("--no-auth and --keys are both given", "one of them", "Leave one out.")
    if no_auth or keys is not None:
        yield None, keys
        return
    import tempfile

    from distft.serve.keys import new_key, write_keys

    with tempfile.TemporaryDirectory(prefix="distft-keys-") as folder:
        secret, key = new_key("this-run")
        write_keys(Path(folder) / "keys.json", [key])
        yield secret, f"{folder}/keys.json"


KeysFile = Annotated[str, typer.Option("--file", metavar="FILE", help="file of API keys")]


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="whose key it is, for the log and for revoking it")],
    file: KeysFile,
    rate: Annotated[float | None, typer.Option(metavar="REQUESTS_PER_S", help="how often it may ask")] = None,
    json: AsJson = False,
) -> None:
    """Make a key, show it once, and add its hash to the file."""
    with session(json) as terminal:
        from distft.serve.keys import add_key

        secret = add_key(file, name, rate)
        terminal.say(f"key {name} (shown this once; a running service knows it in 2 s):")
        terminal.show(secret)
        terminal.result({"name": name, "key": secret})


@keys_app.command("list")
def keys_list(file: KeysFile, json: AsJson = False) -> None:
    """List the keys of a file: names and rates."""
    with session(json) as terminal:
        from distft.serve.keys import read_keys

        found = read_keys(Path(file))
        if found:
            terminal.texts("keys", [(key.name, f"{key.requests_per_s or 'any'} requests/s") for key in found])
        terminal.result({"keys": [key.model_dump(exclude={"sha256"}) for key in found]})


@keys_app.command("revoke")
def keys_revoke(name: Annotated[str, typer.Argument(metavar="NAME")], file: KeysFile, json: AsJson = False) -> None:
    """Take a key out of the file."""
    with session(json) as terminal:
        from distft.serve.keys import remove_key

        remove_key(file, name)
        terminal.say(f"key {name} is revoked; a running service refuses it in 2 s")
        terminal.result({"name": name})

"""Signatures of bundles: who may hand a service a model.

Enters: a bundle and a key of Ed25519 in PEM, as ``openssl genpkey -algorithm ed25519`` makes it. Leaves: the file
``manifest.sig`` beside the manifest, which has the SHA-256 of every other file. Surprising choice: what is signed is
the manifest's identity and not its bytes, which is what a service is told apart by everywhere else.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from distft.errors import ArtefactError, UsageError
from distft.storage import Storage

FILE = "manifest.sig"
_PURPOSE = b"distft bundle "


def check_signing_key(key_file: str) -> Ed25519PrivateKey:
    """The private key of a file. Raises UsageError where there is none."""
    try:
        key = load_pem_private_key(_pem(key_file), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(key_file, "private", error) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(key_file, "private", "it is of another kind")
    return key


def check_trusted_key(key_file: str) -> Ed25519PublicKey:
    """The public key of a file. Raises UsageError where there is none."""
    try:
        key = load_pem_public_key(_pem(key_file))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(key_file, "public", error) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(key_file, "public", "it is of another kind")
    return key


def sign(bundle: Storage, key_file: str) -> None:
    """Signs a bundle. Raises UsageError without a key, ArtefactError for a damaged bundle."""
    key = check_signing_key(key_file)
    identity = bundle.verified("bundle").sha256
    bundle.write_bytes(FILE, key.sign(_PURPOSE + identity.encode()).hex().encode() + b"\n")


def check_signed(bundle: Storage, key_file: str, sha256: str) -> None:
    """Raises ArtefactError unless the bundle, whose manifest is ``sha256``, was signed with the key's other half."""
    key = check_trusted_key(key_file)
    if not bundle.exists(FILE):
        what = f"{bundle.uri} is not signed, and {key_file} is to vouch for it"
        raise ArtefactError(what, f"a {FILE}", "Export it with --sign-key FILE.")
    try:
        key.verify(bytes.fromhex(bundle.read_bytes(FILE).decode("ascii").strip()), _PURPOSE + sha256.encode())
    except (InvalidSignature, ValueError) as error:
        what = f"The signature of {bundle.uri} is not one of the key in {key_file}"
        raise ArtefactError(what, "a bundle as it was signed", "Export it with --sign-key and that key.") from error


def _pem(key_file: str) -> bytes:
    try:
        return Path(key_file).read_bytes()
    except OSError as error:
        raise UsageError(
            f"The key {key_file} cannot be read: {error.strerror}", "a file", "Correct the path."
        ) from error


def _no_key(key_file: str, half: str, why: object) -> UsageError:
    make = "openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out key.pub.pem"
    what = f"{key_file} holds no {half} key of Ed25519: {str(why).splitlines()[0]}"
    return UsageError(what, f"a {half} key in PEM", f"Make a pair: {make}")

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from distft.errors import ArtefactError, UsageError
from distft.signing import FILE, check_signed, check_signing_key, check_trusted_key, sign
from distft.storage import Storage


def write_pair(folder: Path, name: str) -> tuple[str, str]:
    """Files of a private and a public key."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return str(private), str(public)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    return write_pair(tmp_path, "shop")


@pytest.fixture
def bundle(tmp_path: Path) -> Storage:
    with Storage(tmp_path).replacing("bundle") as folder:
        folder.write_bytes("model.safetensors", b"weights")
        folder.write_manifest("bundle", {}, {})
    return Storage(tmp_path / "bundle")


def sha256(bundle: Storage) -> str:
    return bundle.verified("bundle").sha256


def test_what_was_signed_is_trusted(bundle: Storage, pair: tuple[str, str], tmp_path: Path) -> None:
    sign(bundle, pair[0])
    check_signed(bundle, pair[1], sha256(bundle))
    with pytest.raises(ArtefactError, match="is not one of the key"):
        check_signed(bundle, write_pair(tmp_path, "stranger")[1], sha256(bundle))


def test_a_bundle_without_a_signature_is_not(bundle: Storage, pair: tuple[str, str]) -> None:
    with pytest.raises(ArtefactError, match="is not signed"):
        check_signed(bundle, pair[1], sha256(bundle))


@pytest.mark.parametrize("text", ["", "zz", "00" * 64, "é"])
def test_a_signature_that_is_none_is_refused(bundle: Storage, pair: tuple[str, str], text: str) -> None:
    bundle.write_bytes(FILE, text.encode())
    with pytest.raises(ArtefactError, match="is not one of the key"):
        check_signed(bundle, pair[1], sha256(bundle))


def test_another_bundles_signature_does_not_count(bundle: Storage, pair: tuple[str, str]) -> None:
    sign(bundle, pair[0])
    signature = bundle.read_bytes(FILE)
    bundle.write_bytes("model.safetensors", b"other weights")
    bundle.write_manifest("bundle", {}, {})
    bundle.write_bytes(FILE, signature)
    with pytest.raises(ArtefactError, match="is not one of the key"):
        check_signed(bundle, pair[1], sha256(bundle))


def test_a_damaged_bundle_is_not_signed(bundle: Storage, pair: tuple[str, str]) -> None:
    bundle.write_bytes("model.safetensors", b"changed")
    with pytest.raises(ArtefactError, match="changed after it was written"):
        sign(bundle, pair[0])


def test_files_that_hold_no_such_key_are_named(pair: tuple[str, str], tmp_path: Path) -> None:
    other = tmp_path / "ec.pem"
    key = generate_private_key(SECP256R1())
    other.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for wrong in (pair[1], str(other), __file__):
        with pytest.raises(UsageError, match=r"no private key of Ed25519.*openssl genpkey"):
            check_signing_key(wrong)
    for wrong in (pair[0], __file__):
        with pytest.raises(UsageError, match="no public key of Ed25519"):
            check_trusted_key(wrong)
    with pytest.raises(UsageError, match="cannot be read"):
        check_trusted_key(str(tmp_path / "nowhere"))

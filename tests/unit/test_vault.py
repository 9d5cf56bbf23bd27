"""The vault: what it seals only its keys open, and a data directory has one key."""

import threading
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from tramontane.errors import ConfigurationError, SecretsLocked
from tramontane.settings import Settings
from tramontane.vault import Vault, open_vault


def key() -> str:
    return Fernet.generate_key().decode()


def test_what_is_sealed_opens_again_and_shows_nothing() -> None:
    vault = Vault([key()])
    sealed = vault.seal("whsec_Sète 😀")
    assert b"whsec" not in sealed
    assert vault.open(sealed) == vault.open(sealed) == "whsec_Sète 😀"
    assert vault.seal("whsec_Sète 😀") != sealed


def test_a_key_that_follows_another_seals_anew_and_opens_both() -> None:
    old, new = key(), key()
    sealed = Vault([old]).seal("a secret")
    both = Vault([new, old])
    assert both.open(sealed) == "a secret"
    assert Vault([new]).open(both.seal("another")) == "another"
    with pytest.raises(SecretsLocked):
        Vault([old]).open(both.seal("another"))


def test_another_key_or_another_byte_opens_nothing() -> None:
    vault = Vault([key()])
    sealed = vault.seal("s3cr3t")
    with pytest.raises(SecretsLocked, match="another key"):
        Vault([key()]).open(sealed)
    with pytest.raises(SecretsLocked):
        vault.open(sealed[:-8] + b"AAAAAAA=")


def test_without_a_key_nothing_is_sealed_or_opened_and_the_remedy_is_named() -> None:
    sealed = Vault([key()]).seal("a secret")
    for use in (lambda: Vault([]).seal("a secret"), lambda: Vault([]).open(sealed)):
        with pytest.raises(SecretsLocked, match="TRAMONTANE_ENCRYPTION_KEY"):
            use()


def test_a_fingerprint_names_a_key_and_does_not_tell_it() -> None:
    first, second = key(), key()
    assert Vault([first, second]).fingerprints == Vault([first]).fingerprints + Vault([second]).fingerprints
    assert len(set(Vault([first, second]).fingerprints)) == 2
    assert Vault([first]).fingerprints[0] not in first
    assert Vault([]).fingerprints == ()


def test_many_secrets_do_not_stay_in_memory() -> None:
    vault = Vault([key()])
    for number in range(1500):
        vault.open(vault.seal(str(number)))
    assert len(vault._opened) == 1000


# The key of a data directory


def test_the_embedded_databases_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    sealed = open_vault(settings).seal("a secret")
    assert open_vault(settings).open(sealed) == "a secret"
    file = tmp_path / "data" / "encryption.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["encryption.key"]


def test_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    ready, vaults = threading.Barrier(8), list[Vault]()

    def start() -> None:
        ready.wait()
        vaults.append(open_vault(settings))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({vault.fingerprints for vault in vaults}) == 1
    assert len(vaults) == 8


def test_a_given_key_comes_before_that_of_the_directory(tmp_path: Path) -> None:
    given = key()
    assert open_vault(Settings(data_dir=tmp_path, encryption_keys=(given,))).fingerprints == Vault([given]).fingerprints
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_servers_may_share_gets_no_key_of_one_of_them(tmp_path: Path) -> None:
    vault = open_vault(Settings(data_dir=tmp_path, database_url="postgresql://there/db"))
    assert vault.fingerprints == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "not a key", "QUJD", "é" * 44], ids=["empty", "words", "short", "odd"])
def test_a_spoilt_key_file_is_an_error_and_stays_as_it_is(tmp_path: Path, content: str) -> None:
    file = tmp_path / "encryption.key"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match="put back the one that was there"):
        open_vault(Settings(data_dir=tmp_path))
    assert file.read_text() == content


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"encryption\.key cannot be used"):
        open_vault(Settings(data_dir=tmp_path / "file"))

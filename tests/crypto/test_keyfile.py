"""Encryption keys kept in a file: whole or not at all, their owner's only, and closed to any other KEK."""

import base64
import hashlib
import json
import os
import pickle
import stat
import struct
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from nacl.secret import Aead
from support.fake_gateway import error_text

from prem_core import AsyncPremClient, EnclaveKeyError, EncryptionKeys, PremClient
from prem_core._crypto import keyfile
from prem_core._crypto.keyfile import KEK_VARIABLE, resolve_kek
from prem_core._crypto.xwing import CIPHER_TEXT_BYTES, PrivateKey
from prem_core._errors import ConfigurationError
from prem_core.enclave import LocalEnclave

# Random looks, so that a test that searches for them finds nothing else.
KEK = hashlib.sha256(b"a KEK").digest()
SECRET = hashlib.sha256(b"a secret").digest()
CIPHER_TEXT = bytes(range(224)) * 5
KEYS = EncryptionKeys(SECRET, CIPHER_TEXT, enclave_fingerprint="ab" * 32)
ASK = {
    "model": "openai/gpt-oss-120b",
    "messages": [
        {
            "role": "user",
            "content": "Context: The clinic opens at eight. Question: When does the clinic open?",
        }
    ],
}

posix = pytest.mark.skipif(os.name == "nt", reason="permission bits")
as_root = pytest.mark.skipif(
    os.name == "nt" or os.geteuid() != 0, reason="only root can give a file to another user"
)


@pytest.fixture
def path(tmp_path):
    """A file with `KEYS` in it."""
    path = tmp_path / "keys.prem"
    KEYS.save(path, KEK)
    return path


def spelled(secret):
    """The forms in which a secret could be seen."""
    return secret.hex(), secret.hex().upper(), base64.b64encode(secret).decode(), repr(secret)[2:-1]


def locals_of(error):
    """The locals of this package's frames, on the way of an error and of those behind it."""
    found, pending = [], [error]
    while pending:
        current = pending.pop()
        pending += [each for each in (current.__cause__, current.__context__) if each is not None]
        step = current.__traceback__
        while step is not None:
            if "prem_core" in step.tb_frame.f_code.co_filename or "nacl" in step.tb_frame.f_code.co_filename:
                found += [repr(value) for value in step.tb_frame.f_locals.values()]
            step = step.tb_next
    return "\n".join(found)


def refused(call, *secrets, match=None):
    with pytest.raises(ConfigurationError, match=match) as caught:
        call()
    shown = error_text(caught.value) + locals_of(caught.value)
    for secret in (KEK, SECRET, *secrets):
        for form in spelled(secret):
            assert form not in shown
    return str(caught.value)


def raiser(error):
    def fail(*_):
        raise error

    return fail


def left_in(folder):
    return sorted(os.listdir(folder))


class TestRoundTrip:
    def test_saved_keys_are_loaded(self, path):
        again = EncryptionKeys.load(path, KEK)
        assert again == KEYS
        assert again.shared_secret == SECRET
        assert again.enclave_fingerprint == "ab" * 32

    def test_the_fingerprint_of_the_enclave_key_is_saved_and_loaded(self, tmp_path):
        public = PrivateKey(SECRET).public_key()
        EncryptionKeys.encapsulate(public).save(tmp_path / "k", KEK)
        assert EncryptionKeys.load(tmp_path / "k", KEK).enclave_fingerprint == public.fingerprint()

    def test_keys_without_a_fingerprint_are_loaded_without_one(self, tmp_path):
        EncryptionKeys(SECRET, CIPHER_TEXT).save(tmp_path / "k", KEK)
        assert EncryptionKeys.load(tmp_path / "k", KEK).enclave_fingerprint is None
        assert keyfile.read_header(tmp_path / "k").enclave_fingerprint is None

    def test_no_two_files_have_the_same_nonce_or_sealed_secret(self, tmp_path):
        images = []
        for number in range(50):
            KEYS.save(tmp_path / str(number), KEK)
            images.append((tmp_path / str(number)).read_bytes())
        assert len({image[1170:1194] for image in images}) == 50
        assert len({image[1194:] for image in images}) == 50

    def test_a_path_may_be_a_string_and_relative(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        KEYS.save("k", KEK)
        assert EncryptionKeys.load("k", KEK) == KEYS

    def test_the_longest_file_name_can_be_used(self, tmp_path):
        KEYS.save(tmp_path / ("k" * 255), KEK)
        assert EncryptionKeys.load(tmp_path / ("k" * 255), KEK) == KEYS


class TestFormat:
    def test_a_key_file_has_the_documented_bytes(self, path):
        image = path.read_bytes()
        assert len(image) == keyfile.FILE_BYTES == 1242
        magic, version, created, fingerprint, cipher_text = struct.unpack(">8sHQ32s1120s", image[:1170])
        assert (magic, version, fingerprint, cipher_text) == (b"PREMKEYS", 1, b"\xab" * 32, CIPHER_TEXT)
        assert 0 <= time.time() - created < 60
        # PyNaCl's own box for the same construction takes nonce and ciphertext in one.
        assert Aead(KEK).decrypt(image[1170:], image[:1170]) == SECRET

    def test_a_key_file_made_by_the_documentation_is_loaded(self, tmp_path):
        header = struct.pack(">8sHQ32s1120s", b"PREMKEYS", 1, 1_800_000_000, bytes(32), CIPHER_TEXT)
        path = tmp_path / "k"
        path.write_bytes(header + bytes(Aead(KEK).encrypt(SECRET, header, bytes(24))))
        path.chmod(0o600)
        assert EncryptionKeys.load(path, KEK) == KEYS
        assert keyfile.read_header(path).created == datetime(2027, 1, 15, 8, 0, tzinfo=UTC)

    def test_the_secret_is_not_in_the_file(self, path):
        assert SECRET not in path.read_bytes()
        assert KEK not in path.read_bytes()

    def test_inspecting_a_key_file_without_the_kek_reveals_no_secret(self, path):
        file = keyfile.read_header(path)
        assert file.enclave_fingerprint == "ab" * 32
        assert "PREMKEYS" not in repr(file)
        assert not any(form in repr(file) for form in spelled(SECRET))


class TestDamage:
    def test_a_key_file_with_any_flipped_bit_is_rejected(self, path):
        image = path.read_bytes()
        with path.open("r+b", buffering=0) as file:

            def write(place, byte):
                file.seek(place)
                file.write(bytes([byte]))

            for place, byte in enumerate(image):
                for bit in range(8):
                    write(place, byte ^ 1 << bit)
                    with pytest.raises(ConfigurationError):
                        EncryptionKeys.load(path, KEK)
                write(place, byte)
        assert path.read_bytes() == image

    def test_a_truncated_key_file_is_rejected(self, path):
        image = path.read_bytes()
        for length in range(len(image)):
            path.write_bytes(image[:length])
            with pytest.raises(ConfigurationError, match="damaged|not an encryption-key file"):
                EncryptionKeys.load(path, KEK)

    @pytest.mark.parametrize("more", [b"\0", bytes(10_000)])
    def test_a_key_file_with_trailing_data_is_rejected(self, path, more):
        path.write_bytes(path.read_bytes() + more)
        refused(lambda: EncryptionKeys.load(path, KEK), match="damaged: a key file has 1242 bytes")

    def test_a_large_file_is_read_only_up_to_the_size_of_a_key_file(self, path):
        with path.open("r+b") as file:
            file.truncate(1 << 40)  # sparse; reading it whole would end the test
        refused(lambda: EncryptionKeys.load(path, KEK), match="damaged")

    def test_the_error_for_another_file_version_names_the_version(self, path):
        image = bytearray(path.read_bytes())
        image[9] = 2
        for length in (10, 100, 1242):
            path.write_bytes(image[:length])
            refused(lambda: EncryptionKeys.load(path, KEK), match="version 2; this release reads version 1")

    def test_parts_of_two_key_files_cannot_be_combined(self, path, tmp_path, monkeypatch):
        monkeypatch.setattr(keyfile.time, "time", lambda: 1.8e9)
        EncryptionKeys(bytes(32), bytes(CIPHER_TEXT_BYTES)).save(tmp_path / "other", KEK)
        one, two = path.read_bytes(), (tmp_path / "other").read_bytes()
        for cut in (18, 50, 1170, 1194):
            path.write_bytes(one[:cut] + two[cut:])
            refused(lambda: EncryptionKeys.load(path, KEK), match="does not open")

    def test_an_impossible_date_is_reported_as_damage(self, path):
        for seconds in (1 << 40, 1 << 63, (1 << 64) - 1):
            image = path.read_bytes()
            path.write_bytes(image[:10] + seconds.to_bytes(8) + image[18:])
            refused(lambda: keyfile.read_header(path), match="invalid date")


class TestRefused:
    @pytest.mark.parametrize("wrong", [bytes(range(32)), KEK[:-1] + b"\0", KEK[::-1]])
    def test_another_kek_does_not_open_the_file_and_the_error_lists_the_causes(self, path, wrong):
        text = refused(lambda: EncryptionKeys.load(path, wrong), wrong)
        assert "KEK is not the one" in text
        assert "damaged" in text

    @posix
    @pytest.mark.parametrize("mode", [0o601, 0o602, 0o604, 0o610, 0o620, 0o640, 0o644, 0o660, 0o666, 0o777])
    def test_a_key_file_readable_by_others_is_rejected_with_its_mode_and_the_remedy(self, path, mode):
        path.chmod(mode)
        text = refused(lambda: EncryptionKeys.load(path, KEK))
        assert f"mode {mode:04o}" in text
        assert f"chmod 600 {path}" in text

    @as_root
    def test_a_key_file_of_another_user_is_rejected_with_its_owner_and_the_remedy(self, path):
        os.chown(path, 12345, -1)
        text = refused(lambda: EncryptionKeys.load(path, KEK))
        assert "belongs to another user (uid 12345)" in text
        assert f"chown 0 {path}" in text
        file = keyfile.read_header(path)
        assert file.owner == 12345
        refused(file.check_access, match="another user")

    @as_root
    def test_a_user_may_load_a_key_file_of_its_own_and_of_root_only(self, path, monkeypatch):
        monkeypatch.setattr(keyfile.os, "geteuid", lambda: 4711)
        assert EncryptionKeys.load(path, KEK) == KEYS  # root's
        os.chown(path, 4711, -1)
        assert EncryptionKeys.load(path, KEK) == KEYS
        os.chown(path, 4712, -1)
        refused(lambda: EncryptionKeys.load(path, KEK), match="another user")

    @posix
    @pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
    def test_a_key_file_readable_by_its_owner_only_is_loaded(self, path, mode):
        path.chmod(mode)
        assert EncryptionKeys.load(path, KEK) == KEYS

    def test_mode_and_owner_are_not_checked_on_systems_without_them(self, path, monkeypatch):
        path.chmod(0o666)
        file = keyfile.read_header(path)
        with monkeypatch.context() as windows:  # pytest itself needs the real name
            windows.setattr(keyfile.os, "name", "nt")
            windows.delattr(keyfile.os, "geteuid")
            file.check_access()

    def test_the_error_for_a_missing_file_names_it(self, tmp_path):
        assert "No such file" in refused(lambda: EncryptionKeys.load(tmp_path / "none", KEK))

    def test_a_folder_is_rejected(self, tmp_path):
        refused(lambda: EncryptionKeys.load(tmp_path, KEK))
        for overwrite in (False, True):
            refused(lambda overwrite=overwrite: KEYS.save(tmp_path, KEK, overwrite=overwrite), match="folder")

    @posix
    def test_a_pipe_is_rejected_without_blocking(self, tmp_path):
        os.mkfifo(tmp_path / "pipe", 0o600)
        refused(lambda: EncryptionKeys.load(tmp_path / "pipe", KEK), match="not a regular file")
        refused(lambda: KEYS.save(tmp_path / "pipe", KEK, overwrite=True), match="device")

    def test_an_invalid_path_is_rejected(self, tmp_path):
        for wrong in ("a\0b", "", str(tmp_path / "\ud800")):
            refused(lambda wrong=wrong: EncryptionKeys.load(wrong, KEK), match="cannot be read")
            text = refused(lambda wrong=wrong: KEYS.save(wrong, KEK), match="cannot be written")
            assert text.isprintable()

    def test_a_missing_folder_is_not_created(self, tmp_path):
        refused(lambda: KEYS.save(tmp_path / "no" / "k", KEK), match="cannot be written")

    @posix
    def test_a_link_is_neither_followed_nor_replaced(self, path, tmp_path):
        before = path.read_bytes()
        for target in (path, tmp_path / "nothing"):
            link = tmp_path / "link"
            link.symlink_to(target)
            for overwrite in (False, True):
                refused(lambda o=overwrite, link=link: KEYS.save(link, KEK, overwrite=o), match="a link")
            assert link.is_symlink()
            link.unlink()
        assert path.read_bytes() == before
        assert left_in(tmp_path) == ["keys.prem"]

    @posix
    def test_a_link_to_a_file_readable_by_others_is_rejected(self, path, tmp_path):
        (tmp_path / "link").symlink_to(path)
        assert EncryptionKeys.load(tmp_path / "link", KEK) == KEYS
        path.chmod(0o644)
        refused(lambda: EncryptionKeys.load(tmp_path / "link", KEK), match="0644")


class TestWriting:
    @posix
    @pytest.mark.parametrize("mask", [0, 0o022, 0o077])
    def test_a_key_file_is_private_to_its_owner_whatever_the_umask(self, tmp_path, mask):
        before = os.umask(mask)
        try:
            KEYS.save(tmp_path / "k", KEK)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600

    @posix
    def test_a_replaced_key_file_is_private_to_its_owner(self, path):
        path.chmod(0o666)
        KEYS.save(path, KEK, overwrite=True)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_an_existing_file_is_replaced_only_on_request(self, path):
        before = path.read_bytes()
        other = EncryptionKeys(bytes(32), CIPHER_TEXT)
        refused(lambda: other.save(path, KEK), match="already exists")
        assert path.read_bytes() == before
        other.save(path, KEK, overwrite=True)
        assert EncryptionKeys.load(path, KEK) == other

    @posix
    def test_an_existing_file_under_the_temporary_name_is_neither_followed_nor_removed(
        self, path, tmp_path, monkeypatch
    ):
        before = path.read_bytes()
        monkeypatch.setattr(keyfile.secrets, "token_hex", lambda _: "guessed")
        (tmp_path / ".prem-guessed.tmp").symlink_to(path)
        refused(lambda: KEYS.save(tmp_path / "k", KEK))
        assert path.read_bytes() == before
        assert left_in(tmp_path) == [".prem-guessed.tmp", "keys.prem"]

    def test_saving_leaves_no_other_file_in_the_folder(self, path, tmp_path):
        KEYS.save(path, KEK, overwrite=True)
        assert left_in(tmp_path) == ["keys.prem"]

    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_a_failed_write_leaves_the_existing_file(self, path, tmp_path, monkeypatch, step):
        before = path.read_bytes()
        monkeypatch.setattr(keyfile.os, step, raiser(OSError(28, "No space left on device")))
        refused(lambda: KEYS.save(path, KEK, overwrite=True), match="cannot be written: No space left")
        assert path.read_bytes() == before
        assert left_in(tmp_path) == ["keys.prem"]

    @pytest.mark.parametrize(("step", "name"), [("fsync", "k"), ("link", "k"), ("replace", "keys.prem")])
    def test_an_interrupted_write_leaves_the_existing_file(self, path, tmp_path, monkeypatch, step, name):
        before = path.read_bytes()
        monkeypatch.setattr(keyfile.os, step, raiser(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            KEYS.save(tmp_path / name, KEK, overwrite=name != "k")
        assert path.read_bytes() == before
        assert left_in(tmp_path) == ["keys.prem"]

    @posix
    def test_a_write_truncated_by_a_size_limit_leaves_the_existing_file(self, path, tmp_path):
        before = path.read_bytes()
        program = f"""
            import resource
            from prem_core import EncryptionKeys
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            try:
                EncryptionKeys(bytes(32), bytes(1120)).save({str(path)!r}, bytes(range(32)), overwrite=True)
            except ValueError as error:
                print(error)
        """
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
        )
        assert "File too large" in ended.stdout, ended.stderr
        assert path.read_bytes() == before
        assert left_in(tmp_path) == ["keys.prem"]

    @posix
    def test_the_error_for_a_read_only_folder_names_it(self, path, tmp_path):
        program = """
            import os
            from prem_core import EncryptionKeys
            from prem_core._crypto import keyfile  # before the change of user, who may not read the interpreter
            if os.geteuid() == 0:  # root may write anywhere
                os.setuid(65534)
            try:
                EncryptionKeys(bytes(32), bytes(1120)).save("keys.prem", bytes(range(32)), overwrite=True)
            except ValueError as error:
                print(error)
        """
        before = path.read_bytes()
        tmp_path.chmod(0o555)
        try:
            ended = subprocess.run(
                [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=tmp_path
            )
        finally:
            tmp_path.chmod(0o700)
        assert ended.stdout == "keys.prem cannot be written: Permission denied\n", ended.stderr
        assert path.read_bytes() == before
        assert left_in(tmp_path) == ["keys.prem"]

    def test_without_hard_links_a_file_is_still_not_replaced(self, tmp_path, monkeypatch):
        monkeypatch.setattr(keyfile.os, "link", raiser(PermissionError(1, "Operation not permitted")))
        KEYS.save(tmp_path / "k", KEK)
        monkeypatch.setattr(keyfile, "check_not_exists", lambda *_, **__: None)  # it came after the check
        refused(lambda: KEYS.save(tmp_path / "k", KEK[::-1]), match="already exists")
        assert EncryptionKeys.load(tmp_path / "k", KEK) == KEYS
        assert left_in(tmp_path) == ["k"]

    def test_a_folder_that_cannot_be_synced_does_not_undo_the_file(self, tmp_path, monkeypatch):
        synced = os.fsync

        def files_only(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(22, "Invalid argument")
            synced(descriptor)

        monkeypatch.setattr(keyfile.os, "fsync", files_only)
        KEYS.save(tmp_path / "k", KEK)
        assert EncryptionKeys.load(tmp_path / "k", KEK) == KEYS

    def test_the_file_is_on_the_disk_before_it_has_its_name_and_the_folder_after(self, tmp_path, monkeypatch):
        steps, synced, linked = [], os.fsync, os.link

        def fsync(descriptor):
            kind = os.fstat(descriptor).st_mode
            steps.append("folder" if stat.S_ISDIR(kind) else "file")
            synced(descriptor)

        monkeypatch.setattr(keyfile.os, "fsync", fsync)
        monkeypatch.setattr(keyfile.os, "link", lambda *names: (steps.append("name"), linked(*names)))
        KEYS.save(tmp_path / "k", KEK)
        assert steps == ["file", "name", "folder"]

    def test_one_of_many_concurrent_writers_succeeds_and_the_others_get_an_error(self, tmp_path):
        barrier = threading.Barrier(16)

        def save(number):
            barrier.wait()
            try:
                EncryptionKeys(bytes([number]) * 32, CIPHER_TEXT).save(tmp_path / "k", KEK)
            except ConfigurationError:
                return None
            return number

        for _ in range(10):
            with ThreadPoolExecutor(16) as pool:
                (winner,) = [number for number in pool.map(save, range(16)) if number is not None]
            assert EncryptionKeys.load(tmp_path / "k", KEK).shared_secret == bytes([winner]) * 32
            assert left_in(tmp_path) == ["k"]
            (tmp_path / "k").unlink()

    @posix
    def test_a_concurrent_reader_always_gets_a_complete_file(self, path, tmp_path):
        stop = threading.Event()
        known = [SECRET, *(bytes([number]) * 32 for number in range(4))]

        def write(number):
            while not stop.is_set():
                EncryptionKeys(known[number + 1], CIPHER_TEXT).save(path, KEK, overwrite=True)

        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(write, number) for number in range(4)]
            try:
                for _ in range(500):
                    assert EncryptionKeys.load(path, KEK).shared_secret in known
            finally:
                stop.set()
            for writer in writers:
                writer.result()
        assert left_in(tmp_path) == ["keys.prem"]


class TestKek:
    FORMS = (
        KEK,
        bytearray(KEK),
        KEK.hex(),
        KEK.hex().upper(),
        base64.b64encode(KEK).decode(),
        f" {KEK.hex()}\n",
    )

    @pytest.mark.parametrize("form", range(len(FORMS)))
    def test_a_kek_may_be_bytes_hex_or_base64(self, path, form):
        assert resolve_kek(self.FORMS[form]) == KEK
        assert EncryptionKeys.load(path, self.FORMS[form]) == KEYS

    @pytest.mark.parametrize("form", [KEK.hex(), base64.b64encode(KEK).decode(), f"{KEK.hex()}\n"])
    def test_the_kek_defaults_to_the_environments(self, path, tmp_path, form, monkeypatch):
        monkeypatch.setenv("CLIENT_KEK", form)
        assert EncryptionKeys.load(path) == KEYS
        KEYS.save(tmp_path / "again")
        assert EncryptionKeys.load(tmp_path / "again", KEK) == KEYS

    def test_the_kek_argument_overrides_the_environment(self, path, monkeypatch):
        monkeypatch.setenv("CLIENT_KEK", KEK[::-1].hex())
        assert EncryptionKeys.load(path, KEK) == KEYS
        refused(lambda: EncryptionKeys.load(path, ""), match="kek must be 32 bytes")

    @pytest.mark.parametrize("value", [None, "", " \n"])
    def test_the_error_for_a_missing_kek_explains_how_to_set_it(self, path, value, monkeypatch):
        if value is not None:
            monkeypatch.setenv(KEK_VARIABLE, value)
        for call in (lambda: EncryptionKeys.load(path), lambda: KEYS.save(path, overwrite=True)):
            text = refused(call, match="no KEK")
            assert "CLIENT_KEK" in text

    BAD = (
        KEK[:-1],
        KEK + b"\0",
        KEK.hex().encode(),
        KEK.hex()[:-1],
        KEK.hex()[:-2],
        KEK.hex() + "00",
        KEK.hex()[:-1] + "g",
        base64.b64encode(KEK).decode()[:-1],
        base64.b64encode(KEK[:-1]).decode(),
        base64.b64encode(KEK + b"\0").decode(),
        base64.b64encode(KEK).decode()[:20] + "\n" + base64.b64encode(KEK).decode()[20:],
        base64.b64encode(KEK).decode() + "ä",
        "correct horse battery staple",
    )

    @pytest.mark.parametrize("number", range(len(BAD)))
    def test_an_invalid_kek_is_rejected_without_quoting_it(self, path, number, monkeypatch):
        bad = self.BAD[number]
        parts = (bad[:8] if isinstance(bad, str) else bad.hex()[:16], repr(bad)[2:20])
        calls = [lambda: EncryptionKeys.load(path, bad), lambda: KEYS.save(path, bad, overwrite=True)]
        if isinstance(bad, str):
            monkeypatch.setenv("CLIENT_KEK", bad)
            calls.append(lambda: EncryptionKeys.load(path))
        for call in calls:
            with pytest.raises(ConfigurationError, match="must be 32 bytes") as caught:
                call()
            shown = error_text(caught.value) + locals_of(caught.value)
            assert not any(part in shown for part in parts)

    @pytest.mark.parametrize("byte", [0, 1, 0x30, 0xFF])
    def test_a_kek_of_one_repeated_byte_is_rejected(self, path, tmp_path, byte, monkeypatch):
        kek = bytes([byte]) * 32
        for form in (kek, kek.hex(), base64.b64encode(kek).decode()):
            for call in (
                lambda form=form: EncryptionKeys.load(path, form),
                lambda form=form: KEYS.save(tmp_path / "k", form),
            ):
                assert "openssl rand -hex 32" in refused(call, match="kek is one byte repeated 32 times")
        monkeypatch.setenv("CLIENT_KEK", kek.hex())
        refused(lambda: EncryptionKeys.load(path), match="CLIENT_KEK is one byte repeated")
        keyfile.write_kek(tmp_path / "kek", kek)
        refused(lambda: keyfile.read_kek(tmp_path / "kek"), match="kek is one byte repeated")
        assert left_in(tmp_path) == ["kek", "keys.prem"]

    @pytest.mark.parametrize("wrong", [32, 1.5, [0] * 32, object()])
    def test_a_kek_of_another_type_is_rejected(self, path, wrong):
        refused(lambda: EncryptionKeys.load(path, wrong), match="kek must be 32 bytes")

    def test_every_generated_kek_is_different(self):
        keks = {keyfile.new_kek() for _ in range(100)}
        assert len(keks) == 100
        assert {len(kek) for kek in keks} == {32}


class TestKekFile:
    def test_a_written_kek_file_is_read_and_private_to_its_owner(self, tmp_path):
        keyfile.write_kek(tmp_path / "kek", KEK)
        assert keyfile.read_kek(tmp_path / "kek") == KEK
        if os.name != "nt":
            assert stat.S_IMODE((tmp_path / "kek").stat().st_mode) == 0o600

    def test_a_kek_file_is_never_replaced(self, tmp_path):
        keyfile.write_kek(tmp_path / "kek", KEK[::-1])
        text = KEK.hex().encode()
        refused(lambda: keyfile.write_kek(tmp_path / "kek", KEK), text, match="already exists")
        assert keyfile.read_kek(tmp_path / "kek") == KEK[::-1]

    @pytest.mark.parametrize("text", [KEK.hex(), KEK.hex() + "\r\n", base64.b64encode(KEK).decode() + " \n"])
    def test_a_kek_file_written_by_hand_is_read(self, tmp_path, text):
        (tmp_path / "kek").write_text(text, newline="")
        (tmp_path / "kek").chmod(0o600)
        assert keyfile.read_kek(tmp_path / "kek") == KEK

    @pytest.mark.parametrize(
        "text", ["", "\n\n", KEK.hex()[:-1], KEK.hex() * 2, " " + KEK.hex() + "\n" * 200]
    )
    def test_a_kek_file_with_other_content_is_rejected_without_quoting_it(self, tmp_path, text):
        (tmp_path / "kek").write_text(text)
        (tmp_path / "kek").chmod(0o600)
        with pytest.raises(ConfigurationError, match="does not contain a KEK") as caught:
            keyfile.read_kek(tmp_path / "kek")
        assert KEK.hex()[:16] not in error_text(caught.value) + locals_of(caught.value)

    @posix
    def test_a_kek_file_readable_by_others_is_rejected(self, tmp_path):
        keyfile.write_kek(tmp_path / "kek", KEK)
        (tmp_path / "kek").chmod(0o640)
        refused(lambda: keyfile.read_kek(tmp_path / "kek"), KEK.hex().encode(), match="mode 0640")

    @as_root
    def test_a_kek_file_of_another_user_is_rejected(self, tmp_path):
        keyfile.write_kek(tmp_path / "kek", KEK)
        os.chown(tmp_path / "kek", 12345, -1)
        refused(lambda: keyfile.read_kek(tmp_path / "kek"), match="another user \\(uid 12345\\)")

    def test_the_text_of_a_kek_file_is_overwritten_in_memory(self, tmp_path, monkeypatch):
        buffers, read = [], keyfile._read

        def keep(*arguments):
            buffers.append(read(*arguments))
            return buffers[-1]

        monkeypatch.setattr(keyfile, "_read", keep)
        keyfile.write_kek(tmp_path / "kek", KEK)
        assert keyfile.read_kek(tmp_path / "kek") == KEK
        (buffer, length, _) = buffers[0]
        assert length == 65
        assert not any(buffer)


class TestKeys:
    @pytest.mark.parametrize("wrong", ["", "ab", "zz" * 32, "ab" * 33, "ab" * 32 + "\n"])
    def test_an_invalid_fingerprint_is_rejected(self, wrong):
        with pytest.raises(ConfigurationError, match="enclave_fingerprint"):
            EncryptionKeys(SECRET, CIPHER_TEXT, enclave_fingerprint=wrong)

    def test_a_fingerprint_changes_neither_the_keys_nor_their_repr(self, path):
        loaded = EncryptionKeys.load(path, KEK)
        assert loaded == EncryptionKeys(SECRET, CIPHER_TEXT)
        for show in (repr, str):
            assert not any(form in show(loaded) for form in spelled(SECRET))
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(loaded)


class TestClients:
    async def test_a_client_sends_the_loaded_keys(self, enclave, seen, tmp_path):
        EncryptionKeys.encapsulate(enclave.public_key).save(tmp_path / "k", KEK)
        loaded = EncryptionKeys.load(tmp_path / "k", KEK)
        values = {
            "api_key": enclave.api_key,
            "gateway_url": enclave.gateway_url,
            "enclave_url": enclave.enclave_url,
            "encryption_keys": loaded,
        }
        with PremClient(**values) as client:
            assert "eight" in client.chat.completions.create(**ASK).choices[0].message.content
        async with AsyncPremClient(**values) as client:
            assert (await client.chat.completions.create(**ASK)).choices[0].message.content
        sent = [json.loads(exchange.request_body)["cipherText"] for exchange in seen.chats]
        assert sent == [loaded.cipher_text.hex()] * 2

    def test_loaded_keys_from_before_a_key_rotation_are_an_error_that_explains_it(self, tmp_path):
        with LocalEnclave() as prem:
            EncryptionKeys.encapsulate(prem.public_key).save(tmp_path / "k", KEK)
            prem.rotate_key()
            loaded = EncryptionKeys.load(tmp_path / "k", KEK)
            assert loaded.enclave_fingerprint != prem.public_key.fingerprint()
            with (
                PremClient(
                    api_key=prem.api_key,
                    gateway_url=prem.gateway_url,
                    enclave_url=prem.enclave_url,
                    encryption_keys=loaded,
                ) as client,
                pytest.raises(EnclaveKeyError, match="encryption_keys.*generate new ones") as caught,
            ):
                client.chat.completions.create(**ASK)
        assert not any(form in error_text(caught.value) for form in spelled(loaded.shared_secret))

"""Every way a data directory can be refused, shared, left or lost, against the real file system and real processes."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest

from callboard_protocol.errors import SessionLockedError, StoreError, StoreInUseError, StoreOpenError, StoreVersionError
from callboard_protocol.records import StepCompleted
from callboard_protocol.runs import RunRequest
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import RunState
from callboard_storage import data_directory, doors
from callboard_storage.committing import commit
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.locks import DirectoryTurn
from callboard_storage.store_values import Fence

pytestmark = pytest.mark.anyio

MAP_SIZE = 1 << 30


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[LmdbStore]:
    store = LmdbStore(path, **({"map_size": MAP_SIZE} | options))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def append(store: LmdbStore, first: int = 0, session_id: str = "session") -> None:
    loop = asyncio.get_running_loop()
    answer = loop.create_future()
    batch = store.batch(session_id)
    batch.append(first, StepCompleted(run_id="run", ordinal=first, at=1.0, step=str(first), kind="tool"))
    store.commit(batch, Fence(first - 1), loop, answer.set_result)
    error = await answer
    if error is not None:
        raise error


async def length(store: LmdbStore, session_id: str = "session") -> int:
    return len(await store.read_log(session_id))


@contextmanager
def raw(path: Path, **options: Any) -> Iterator[Any]:
    """The directory as LMDB itself sees it."""
    environment = lmdb.open(str(path), map_size=MAP_SIZE, max_dbs=16, **options)
    try:
        yield environment
    finally:
        environment.close()


def script(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own; `opened` and `append` are there too."""
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def running(code: str, directory: Path) -> subprocess.Popen[str]:
    """Start code in a process of its own, talking to it over its pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


PREAMBLE = """
import asyncio, os, signal, sys
from pathlib import Path
from callboard_protocol.errors import *
from callboard_protocol.records import StepCompleted
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence

async def append(store, first=0, lease=None):
    loop = asyncio.get_running_loop()
    answer = loop.create_future()
    batch = store.batch("session")
    batch.append(first, StepCompleted(run_id="run", ordinal=first, at=1.0, step=str(first), kind="tool"))
    store.commit(batch, Fence(first - 1, lease, takes=lease is not None), loop, answer.set_result)
    assert await answer is None
"""


# ---- paths


async def test_a_file_is_no_data_directory(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreOpenError, match="is a file"):
            await LmdbStore(path).open()
    assert (tmp_path / "file").read_text() == "mine"


async def test_a_directory_that_cannot_be_made_is_refused():
    with pytest.raises(StoreOpenError, match="cannot be used as a data directory"):
        await LmdbStore("/proc/callboard").open()


def test_a_directory_that_cannot_be_written_is_refused():
    # Permissions mean nothing to root, so the process first becomes somebody else.
    done = script(
        """
        import tempfile
        from callboard_protocol.base import build_models
        build_models()  # what that loads is read as root, whom the libraries may belong to
        with tempfile.TemporaryDirectory() as place:
            os.chmod(place, 0o755)
            data = Path(place) / "data"
            data.mkdir(mode=0o555)
            child = os.fork()
            if not child:
                if os.geteuid() == 0:
                    os.setuid(65534)
                try:
                    asyncio.run(LmdbStore(data).open())
                except StoreOpenError as error:
                    print(error, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
        """
    )
    assert "is not writable" in done.stdout, done.stderr


async def test_a_directory_of_other_things_is_refused_and_left_alone(directory):
    directory.mkdir()
    for name in ("notes.txt", "a.csv", "b.csv", "c.csv"):
        (directory / name).touch()
    with pytest.raises(StoreOpenError, match=r"holds something else: a\.csv, b\.csv, c\.csv, \.\.\."):
        await LmdbStore(directory).open()
    assert len(list(directory.iterdir())) == 4


async def test_hidden_files_and_an_unfinished_creation_are_no_hindrance(directory):
    directory.mkdir()
    (directory / ".gitignore").touch()
    (directory / "owner").touch()
    (directory / "data.mdb").touch()
    async with opened(directory) as store:
        await append(store)


async def test_missing_parents_are_made(tmp_path):
    async with opened(tmp_path / "a" / "b" / "c") as store:
        await append(store)
    assert (tmp_path / "a" / "b" / "c").stat().st_mode & 0o077 == 0


async def test_a_file_that_is_not_lmdbs_is_refused(directory):
    directory.mkdir()
    (directory / "data.mdb").write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreOpenError, match="is not a store's file"):
        await LmdbStore(directory).open()


async def test_an_lmdb_environment_of_another_program_is_refused(directory):
    with raw(directory) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"theirs", b"value")
    with pytest.raises(StoreOpenError, match="of another program"):
        await LmdbStore(directory, map_size=MAP_SIZE).open()
    with raw(directory) as environment, environment.begin() as transaction:
        assert transaction.stat()["entries"] == 1


async def test_a_table_called_meta_does_not_make_it_ours(directory):
    with raw(directory) as environment:
        meta = environment.open_db(b"meta")
        with environment.begin(write=True) as transaction:
            transaction.put(b"format", b"their own", db=meta)
    with pytest.raises(StoreOpenError, match="of another program"):
        await LmdbStore(directory, map_size=MAP_SIZE).open()


# ---- versions


async def test_a_newer_format_is_refused_and_both_are_named(directory):
    async with opened(directory) as store:
        await append(store)
    with raw(directory) as environment:
        meta = environment.open_db(b"meta")
        with environment.begin(write=True) as transaction:
            transaction.put(b"format", b"2", db=meta)
    with pytest.raises(StoreVersionError, match="has store format 2, this release reads up to 1"):
        await LmdbStore(directory, map_size=MAP_SIZE).open()


async def test_the_data_format_of_another_engine_is_refused(directory):
    with raw(directory, lib_version=1):
        pass
    with pytest.raises(StoreVersionError, match=r"LMDB 1\.0.*store migrate"):
        await LmdbStore(directory, map_size=MAP_SIZE).open()


async def test_another_engine_pinned_at_creation_is_refused(directory):
    async with opened(directory):
        pass
    with raw(directory) as environment:
        meta = environment.open_db(b"meta")
        with environment.begin(write=True) as transaction:
            assert transaction.get(b"engine", db=meta) == ".".join(map(str, lmdb.version(lib_version=0))).encode()
            transaction.put(b"engine", b"0.8.1", db=meta)
    with pytest.raises(StoreVersionError, match=r"LMDB 0\.8\.1.*store migrate"):
        await LmdbStore(directory, map_size=MAP_SIZE).open()


async def test_a_patch_of_the_same_engine_locks_no_one_out(directory):
    async with opened(directory) as store:
        await append(store)
    with raw(directory) as environment:
        meta = environment.open_db(b"meta")
        with environment.begin(write=True) as transaction:
            transaction.put(b"engine", b"0.9.999", db=meta)
    async with opened(directory) as store:
        assert await length(store) == 1


async def test_the_environments_default_engine_is_not_asked(directory):
    done = script(
        "asyncio.run(LmdbStore(sys.argv[1], map_size=1 << 30).open())",
        directory,
        env=os.environ | {"LMDB_DEFAULT_LIB_VERSION": "1"},
    )
    assert done.returncode == 0, done.stderr
    async with opened(directory) as store:
        assert await length(store) == 0


# ---- file systems, space, platforms


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "ceph", "lustre", "fuse.glusterfs", "SMB3"])
async def test_a_network_file_system_is_refused(directory, kind):
    with pytest.raises(StoreOpenError, match=f"on a {kind} file system"):
        await LmdbStore(directory, kind_of_file_system=lambda _: kind).open()
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", "tmpfs", "apfs", "zfs", None])
async def test_a_local_file_system_is_taken(directory, kind):
    async with opened(directory, kind_of_file_system=lambda _: kind) as store:
        await append(store)


MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
server:/export /mnt/share nfs4 rw 0 0
/dev/vdb /mnt/share/local xfs rw 0 0
host: /mnt/with\\040space fuse.sshfs rw 0 0
tmpfs /mnt/twice tmpfs rw 0 0
//server/c /mnt/twice cifs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", "ext4"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/deep/down", "nfs4"),
        ("/mnt/share/local/data", "xfs"),
        ("/mnt/shared", "ext4"),
        ("/mnt/with space/data", "fuse.sshfs"),
        ("/mnt/twice/data", "cifs"),
    ],
)
def test_the_kind_of_a_path_is_that_of_its_mount(path, kind):
    assert doors.kind_in_mounts(MOUNTS, Path(path)) == kind


def test_the_kind_of_a_path_on_macos():
    text = (
        "/dev/disk3s1s1 on / (apfs, sealed, local, read-only)\n"
        "//me@server/share on /Volumes/share (smbfs, nodev)\n"
        "map auto_home on /System/Volumes/Data/home (autofs)\n"
    )
    assert doors.kind_in_mount_output(text, Path("/Volumes/share/data")) == "smbfs"
    assert doors.kind_in_mount_output(text, Path("/Users/me")) == "apfs"


def test_the_kind_of_a_real_path_is_known(tmp_path):
    kind = doors.file_system_of(tmp_path.resolve())
    assert kind
    assert kind not in doors.NETWORK_FILE_SYSTEMS


def test_where_the_system_does_not_say_the_kind_is_unknown(tmp_path, monkeypatch, caplog):
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no such program")

    monkeypatch.setattr(doors, "_MOUNTS", tmp_path / "absent")
    monkeypatch.setattr(subprocess, "run", fail)
    assert doors.file_system_of(tmp_path) is None
    assert "is unknown" in caplog.text


async def test_a_new_directory_needs_room_and_an_existing_one_is_opened_without(directory, monkeypatch, caplog):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreOpenError, match="1000 bytes free"):
        await LmdbStore(directory, map_size=MAP_SIZE).open()
    monkeypatch.undo()
    async with opened(directory) as store:
        await append(store)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    async with opened(directory) as store:
        assert await length(store) == 1
    assert "only 1000 bytes free" in caplog.text


def test_other_systems_are_told_to_stay_in_memory():
    doors.check_platform("linux")
    doors.check_platform("darwin")
    with pytest.raises(StoreOpenError, match="store=None"):
        doors.check_platform("win32")


# ---- the settings that are not negotiable


async def test_the_environment_is_opened_durably(directory):
    async with opened(directory, map_size=None) as store:
        assert store._directory is not None
        environment = store._directory.environment._opened[0]
        flags = environment.flags()
        assert (flags["sync"], flags["metasync"], flags["lock"]) == (True, True, True)
        assert (flags["writemap"], flags["map_async"], flags["readonly"]) == (False, False, False)
        assert environment.info()["max_readers"] >= 2048
        assert environment.info()["map_size"] >= 1 << 36


async def test_the_lock_file_is_allocated_once_and_then_left_alone(directory):
    async with opened(directory):
        status = (directory / "lock.mdb").stat()
        assert status.st_blocks * 512 >= status.st_size >= 2048 * 64
    async with opened(directory):
        again = (directory / "lock.mdb").stat()
        assert (again.st_ino, again.st_size) == (status.st_ino, status.st_size)


async def test_without_an_allocating_call_the_lock_file_is_written_out(directory, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    async with opened(directory) as store:
        await append(store)
        status = (directory / "lock.mdb").stat()
        assert status.st_blocks * 512 >= status.st_size >= 2048 * 64


async def test_a_lock_file_that_cannot_be_allocated_is_not_left_behind(directory, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreOpenError, match=r"lock\.mdb cannot be allocated: No space left"):
        await LmdbStore(directory, map_size=MAP_SIZE).open()
    monkeypatch.undo()
    assert not (directory / "lock.mdb").exists()
    async with opened(directory) as store:
        await append(store)


async def test_owners_that_cannot_be_written_down_or_locked_are_said_so(directory, monkeypatch):
    directory.mkdir(parents=True)
    (directory / "alive").write_text("in the way")
    with pytest.raises(StoreOpenError, match="alive cannot be made: File exists"):
        await LmdbStore(directory, map_size=MAP_SIZE).open()
    (directory / "alive").unlink()

    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(StoreOpenError, match="alive cannot be locked: No locks available"):
        await LmdbStore(directory, map_size=MAP_SIZE).open()


async def test_a_full_disk_locks_no_owner_out(directory, monkeypatch):
    async with opened(directory) as store:
        await append(store)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    async with opened(directory) as store:
        assert await length(store) == 1


def test_the_map_is_halved_until_it_fits_the_address_space(directory):
    def limit(size: int) -> Any:
        return lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))

    code = """
    async def main():
        store = LmdbStore(sys.argv[1], map_size=int(sys.argv[2]) or None)
        await store.open()
        print(store._directory.environment._opened[0].info()["map_size"] >> 30)
        await append(store, int(sys.argv[3]))
        await store.close()
    asyncio.run(main())
    """
    smaller = script(code, directory, 0, 0, preexec_fn=limit(300 << 30))
    assert smaller.stdout.strip() == "256", smaller.stderr
    refused = script(code, directory, 0, 1, preexec_fn=limit(20 << 30))
    assert "StoreOpenError" in refused.stderr
    assert "RLIMIT_AS" in refused.stderr
    assert "64 GiB" in refused.stderr
    given = script(code, directory, 2 << 30, 1, preexec_fn=limit(20 << 30))
    assert given.stdout.strip() == "2", given.stderr


# ---- sharing


async def test_stores_of_one_process_share_a_directory(directory, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(directory)
    monkeypatch.chdir(tmp_path)
    async with opened(directory) as one:
        async with opened(Path("link")) as two, opened(Path("data")) as three:
            assert one._directory is two._directory is three._directory
            await append(one, 0)
            await append(two, 1)
            assert await length(three) == 2
        await append(one, 2)
        assert await length(one) == 3
    assert data_directory._open == {}


async def test_stores_of_one_process_must_agree_on_their_options(directory):
    async with opened(directory, max_bytes=10**7):
        with pytest.raises(StoreOpenError, match="with other options"):
            await LmdbStore(directory, map_size=MAP_SIZE).open()
    async with opened(directory) as store:
        await append(store)


async def test_stores_opened_at_the_same_time_share_as_well(directory):
    stores = [LmdbStore(directory, map_size=MAP_SIZE) for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    assert len({id(store._directory) for store in stores}) == 1
    await asyncio.gather(*(store.close() for store in stores))
    assert data_directory._open == {}


async def test_an_opening_that_is_cancelled_leaves_nothing_open(directory, monkeypatch):
    loop = asyncio.get_running_loop()
    begun, given_back = asyncio.Event(), asyncio.Event()
    acquire, release = data_directory.acquire, data_directory.release

    def slow(*arguments: Any, **options: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        return acquire(*arguments, **options)

    def noted(directory: Any) -> None:
        release(directory)
        given_back.set()

    monkeypatch.setattr(data_directory, "acquire", slow)
    monkeypatch.setattr(data_directory, "release", noted)
    opening = asyncio.ensure_future(LmdbStore(directory, map_size=MAP_SIZE).open())
    await begun.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await given_back.wait()
    assert data_directory._open == {}


async def test_a_failed_opening_leaves_the_directory_free(directory):
    directory.mkdir()
    (directory / "data.mdb").write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreOpenError):
        await LmdbStore(directory, map_size=MAP_SIZE).open()
    (directory / "data.mdb").unlink()
    async with opened(directory) as store:
        await append(store)


async def test_another_process_shares_the_directory_but_not_its_locked_sessions(directory):
    owner = running(
        """
        async def main():
            store = LmdbStore(sys.argv[1], map_size=1 << 30)
            await store.open()
            await append(store, lease=store.lease())
            print("open", flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
        """,
        directory,
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        async with opened(directory) as store:
            assert await length(store) == 1
            with pytest.raises(SessionLockedError) as refused:
                await append(store, 1)
            assert refused.value.retryable
            with pytest.raises(StoreInUseError, match="in use by the process"):
                DirectoryTurn(directory, exclusive=True)
            owner.send_signal(signal.SIGKILL)
            owner.wait()
            await append(store, 1)
            assert await store.others_died() is False  # nobody it had seen alive
            assert await length(store) == 2


async def test_a_run_is_claimed_of_a_process_that_came_and_died_between_two_looks(directory):
    async with opened(directory) as store:
        assert await store.others_died() is False
        gone = running(
            """
            from callboard_protocol.runs import RunRequest
            from callboard_protocol.sessions import RunEntry
            from callboard_protocol.states import RunState

            async def main():
                store = LmdbStore(sys.argv[1], map_size=1 << 30)
                await store.open()
                batch = store.batch("session")
                request = RunRequest(agent_id="agent", session_id="session", run_id="left", input_text="hello")
                batch.put_run(RunEntry(request=request, request_digest=b"d", state=RunState.QUEUED, order=1))
                loop = asyncio.get_running_loop()
                answer = loop.create_future()
                store.commit(batch, None, loop, answer.set_result)
                assert await answer is None
                os.kill(os.getpid(), signal.SIGKILL)

            asyncio.run(main())
            """,
            directory,
        )
        with gone:
            assert await asyncio.to_thread(gone.wait) == -signal.SIGKILL
        assert await store.others_died() is True
        assert [entry.run_id for entry in await store.claim_unfinished()] == ["left"]
        assert await store.others_died() is False


async def test_a_run_that_one_store_gives_up_is_news_for_the_others_once(directory):
    async with opened(directory) as one, opened(directory) as other:
        request = RunRequest(agent_id="agent", session_id="session", run_id="given", input_text="hello")
        batch = one.batch("session")
        batch.put_run(RunEntry(request=request, request_digest=b"d", state=RunState.QUEUED, order=1))
        await commit(one, batch)
        assert not await other.others_died()
        assert await other.carried_elsewhere("given")
        assert await one.release_unfinished(["given"]) == {"given"}
        assert not await one.others_died()  # its own doing
        assert [await other.others_died() for _ in range(3)] == [True, False, False]
        assert [entry.run_id for entry in await other.claim_unfinished(["given"])] == ["given"]
        assert await one.carried_elsewhere("given")
        assert await one.claim_unfinished() == []


async def test_a_directory_that_is_removed_while_open_takes_no_more_commits(directory):
    async with opened(directory) as store:
        await append(store)
        shutil.rmtree(directory)
        with pytest.raises(StoreError, match="was removed or replaced while it was open"):
            await append(store, 1)
        assert await length(store) == 1  # what was read can still be read
        assert (await store.figures()).records == 1
    async with opened(directory) as store:
        assert await length(store) == 0
        await append(store)


async def test_a_directory_that_is_replaced_while_open_is_not_written_to(directory):
    async with opened(directory) as store:
        await append(store)
    shutil.copytree(directory, directory.with_name("older"))
    async with opened(directory) as store:
        await append(store, 1)
        directory.rename(directory.with_name("moved"))
        directory.with_name("older").rename(directory)
        with pytest.raises(StoreError, match="was removed or replaced"):
            await append(store, 2)
    async with opened(directory) as store:
        assert await length(store) == 1
    async with opened(directory.with_name("moved")) as store:
        assert await length(store) == 2


def test_a_read_only_data_file_is_refused_and_left_alone():
    # Permissions mean nothing to root, so the process first becomes somebody else.
    done = script(
        """
        import tempfile

        async def make(data):
            store = LmdbStore(data, map_size=1 << 30)
            await store.open()
            await append(store)
            await store.close()

        with tempfile.TemporaryDirectory() as place:
            os.chmod(place, 0o755)
            data = Path(place) / "data"
            asyncio.run(make(data))
            before = (data / "data.mdb").read_bytes()
            (data / "data.mdb").chmod(0o444)
            if os.geteuid() == 0:
                for one in {data, *data.rglob("*")} - {data / "data.mdb"}:
                    os.chown(one, 65534, 65534)
            child = os.fork()
            if not child:
                if os.geteuid() == 0:
                    os.setuid(65534)
                try:
                    asyncio.run(LmdbStore(data, map_size=1 << 30).open())
                except StoreOpenError as error:
                    print(error, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            print("unchanged", (data / "data.mdb").read_bytes() == before, flush=True)
        """
    )
    assert "cannot be opened" in done.stdout, done.stderr
    assert "unchanged True" in done.stdout


# ---- forks


def test_spawned_processes_each_open_a_store_of_their_own(directory):
    done = script(
        """
        import multiprocessing

        def work(path):
            async def main():
                store = LmdbStore(path, map_size=1 << 30)
                await store.open()
                await append(store)
                await store.close()
            asyncio.run(main())

        async def parent():
            store = LmdbStore(sys.argv[1], map_size=1 << 30)
            await store.open()
            await append(store)
            context = multiprocessing.get_context("spawn")
            children = [context.Process(target=runner, args=(f"{sys.argv[1]}-{number}",)) for number in range(2)]
            for child in children:
                child.start()
            for child in children:
                await asyncio.to_thread(child.join)
            print([child.exitcode for child in children], flush=True)
            await append(store, 1)
            print(len(await store.read_log("session")), flush=True)
            await store.close()

        # What a spawned process runs has to be importable, and this script is not.
        place = Path(sys.argv[1]).parent
        source = sys.orig_argv[2]
        (place / "spawned_worker.py").write_text(source.partition("async def parent")[0])
        sys.path.insert(0, str(place))
        from spawned_worker import work as runner

        asyncio.run(parent())
        """,
        directory,
    )
    assert done.stdout.splitlines() == ["[0, 0]", "2"], done.stderr


def test_a_forked_child_is_refused_and_harms_nothing(directory):
    done = script(
        """
        async def use(store):
            for attempt in (lambda: store.read_log("session"), lambda: store.delete_session("session"), store.figures):
                try:
                    await attempt()
                except ForkedError:
                    print("refused", flush=True)
            try:
                await append(store, 1)
            except ForkedError as error:
                print(error, flush=True)
            try:
                await LmdbStore(sys.argv[1], map_size=1 << 30).open()
                print("shared", flush=True)
            except ForkedError as error:
                print("refused", flush=True)
            await store.close()

        async def parent():
            store = LmdbStore(sys.argv[1], map_size=1 << 30)
            await store.open()
            await append(store)
            child = await asyncio.to_thread(fork, store)
            print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            await append(store, 1)
            print("parent", len(await store.read_log("session")), flush=True)
            await store.close()

        def fork(store):
            child = os.fork()
            if not child:
                asyncio.set_event_loop(None)
                asyncio.events._set_running_loop(None)
                try:
                    asyncio.run(use(store))
                finally:
                    sys.stdout.flush()
                    os._exit(0)
            return child

        asyncio.run(parent())
        """,
        directory,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["refused"] * 3
    assert "spawn worker processes" in lines[3]
    assert lines[4:] == ["refused", "child 0", "parent 2"]


async def test_a_child_that_outlives_its_parent_does_not_keep_the_directory(directory):
    # Its standard input stays open as long as this test wants the child to live.
    parent = running(
        """
        async def main():
            store = LmdbStore(sys.argv[1], map_size=1 << 30)
            await store.open()
            await append(store)
            if not os.fork():
                print("child", flush=True)
                sys.stdin.read()
                os._exit(0)
            sys.stdin.close()
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
        """,
        directory,
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        assert parent.stdout.readline() == "child\n"
        await asyncio.to_thread(parent.wait)
        async with opened(directory) as store:
            assert await length(store) == 1
            await append(store, 1)
        parent.stdin.close()

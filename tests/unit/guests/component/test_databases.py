"""Databases in the stand-in for a guest: quiesced for the copy, going on after it. MongoDB is a stand-in too."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.unit.guests.component.private_guest import PrivateGuest

# The other shell runs the same code with PostgreSQL.
pytestmark = pytest.mark.parametrize("machine", ["dash"], indirect=True)


@pytest.fixture
def mariadb(guest: PrivateGuest) -> Iterator[str]:
    """The socket of a running MariaDB with one table."""
    if shutil.which("mariadbd") is None:
        pytest.skip("MariaDB is not installed (Debian: mariadb-server-core)")
    guest.sh(
        "mkdir /tmp/my && mariadb-install-db --no-defaults --datadir=/tmp/my --user=root --skip-test-db"
        " --auth-root-authentication-method=socket >/dev/null 2>&1"
    )
    server = (
        "mariadbd --no-defaults --datadir=/tmp/my --user=root --socket=/tmp/my/s.sock --skip-networking --log-bin=b"
    )
    guest.sh(f"setsid {server} --pid-file=/tmp/my/pid >/tmp/my.log 2>&1 </dev/null &")
    guest.eventually(
        "mariadb -S /tmp/my/s.sock -e 'CREATE DATABASE d; CREATE TABLE d.t (a INT) ENGINE=InnoDB' 2>/dev/null", 30
    )
    try:
        yield "/tmp/my/s.sock"
    finally:
        guest.sh("pkill -9 -x mariadbd || :")
        guest.eventually("! pgrep -x mariadbd >/dev/null")
        guest.sh("rm -rf /tmp/my")


def test_mariadb_holds_its_commits_between_begin_and_end(guest: PrivateGuest, mariadb: str) -> None:
    begun = guest.ask("begin", "s1", "30")
    assert [line[:3] for line in begun.of("app")] == [["mysql", mariadb, "quiesced"]]
    insert = ["mariadb", "-S", mariadb, "-e", "INSERT INTO d.t VALUES (1)"]
    with subprocess.Popen(guest.entering(*insert)) as writer:
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(timeout=1)
        assert guest.sh(f"mariadb -N -S {mariadb} -e 'SELECT COUNT(*) FROM d.t'") == "0"
        ended = guest.ask("end", "s1")
        assert writer.wait(timeout=10) == 0
    assert [line[:3] for line in ended.of("app")] == [["mysql", mariadb, "thawed"]]
    assert b"b.00000" in base64.b64decode(ended.of("label")[0][2])
    # At the deadline the session's end lets go of the locks.
    guest.ask("begin", "s2", "2")
    guest.eventually("[ -e /run/understudy-guest/s2/session/ended ]")
    guest.sh(f"timeout 5 mariadb -S {mariadb} -e 'INSERT INTO d.t VALUES (2)'")
    assert guest.ask("end", "s2").of("expired")


def _need_redis(guest: PrivateGuest) -> None:
    """Debian's tool to check a dump is the server under another name; its package starts no service on this machine."""
    if shutil.which("redis-check-rdb") is None:
        pytest.skip("Redis is not installed (Debian: redis-tools)")
    guest.sh("ln -sf /usr/bin/redis-check-rdb /usr/local/bin/redis-server")


@pytest.mark.parametrize("settings", ["--save 60 1", "--save '' --appendonly yes", "--save ''"])
def test_redis_holds_its_writers_between_begin_and_end(guest: PrivateGuest, settings: str) -> None:
    _need_redis(guest)
    guest.write("/etc/understudy/redis.auth", b"secret\n", 0o600)
    guest.sh(
        f"mkdir /tmp/redis; redis-server --port 7777 --requirepass secret --daemonize yes {settings} --dir /tmp/redis"
        " >/dev/null"
    )
    ask = "REDISCLI_AUTH=secret redis-cli -p 7777"
    try:
        guest.eventually(f'[ "$({ask} SET a 1)" = OK ]')
        begun = guest.ask("begin", "s1", "20")
        assert begun.of("app")[0][2] == "quiesced", begun
        assert guest.sh(f"{ask} GET a") == "1"
        with subprocess.Popen(guest.entering("/bin/sh", "-c", f"{ask} SET a 2 >/dev/null")) as writer:
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(timeout=0.7)
            assert guest.sh(f"{ask} GET a") == "1"
            kept = guest.sh("find /tmp/redis -type f -size +0 | wc -l")
            assert (kept == "0") == (settings == "--save ''")
            assert guest.ask("end", "s1").of("app")[0][2:] == ["thawed", "OK"]
            assert writer.wait(timeout=10) == 0
        assert guest.sh(f"{ask} GET a") == "2"
    finally:
        guest.sh(f"{ask} SHUTDOWN NOSAVE >/dev/null 2>&1; rm -rf /tmp/redis")
        guest.eventually("! pgrep -x redis-server >/dev/null")


def test_a_wrong_password_is_told(guest: PrivateGuest) -> None:
    _need_redis(guest)
    guest.sh("redis-server --port 7777 --requirepass secret --daemonize yes --dir /tmp --save '' >/dev/null")
    try:
        guest.eventually("redis-cli -p 7777 PING | grep -q NOAUTH")
        begun = guest.ask("begin", "s1", "20")
        assert begun.of("app")[0][2] == "failed"
        assert "NOAUTH" in begun.of("app")[0][3]
        assert begun.lines[-1] == ["ready"]
    finally:
        guest.sh("REDISCLI_AUTH=secret redis-cli -p 7777 SHUTDOWN NOSAVE >/dev/null 2>&1 || :")


# Debian has no MongoDB: its shell is a script that keeps the lock as a file and prints what our statements would.
_MONGOSH = b"""#!/bin/sh
case $* in
*fsyncLock*) touch /tmp/mongo-lock; echo 'optime {"ts":1,"t":2}'; echo understudy-locked ;;
*fsyncUnlock*) rm /tmp/mongo-lock && echo understudy-unlocked ;;
esac
"""


@pytest.fixture
def mongodb(guest: PrivateGuest) -> Iterator[None]:
    """A process with the name of a server, and a stand-in for its shell."""
    guest.write("/usr/local/bin/mongosh", _MONGOSH, 0o755)
    guest.sh("cp /usr/bin/sleep /usr/local/bin/mongod; setsid mongod 1000 </dev/null >/dev/null 2>&1 &")
    guest.eventually("pgrep -x mongod >/dev/null")
    try:
        yield
    finally:
        guest.sh("pkill -x mongod; rm -f /usr/local/bin/mongosh /usr/local/bin/mongod /tmp/mongo-lock")


@pytest.mark.usefixtures("mongodb")
def test_mongodb_is_locked_and_unlocked_through_its_shell(guest: PrivateGuest) -> None:
    assert guest.ask("begin", "s1", "20").of("app")[0][:3] == ["mongodb", "127.0.0.1:27017", "quiesced"]
    assert guest.sh("ls /tmp/mongo-lock") == "/tmp/mongo-lock"
    ended = guest.ask("end", "s1")
    assert ended.of("app")[0][2] == "thawed"
    assert base64.b64decode(ended.of("label")[0][2]) == b'optime {"ts":1,"t":2}\n'
    assert guest.sh("ls /tmp/mongo-lock 2>/dev/null || :") == ""
    guest.ask("begin", "s2", "2")
    guest.eventually("[ ! -e /tmp/mongo-lock ]")


@pytest.mark.usefixtures("mongodb")
def test_mongodb_s_shell_that_hangs_is_killed(guest: PrivateGuest) -> None:
    guest.write("/usr/local/bin/mongosh", b"#!/bin/sh\nexec sleep 77\n", 0o755)
    begun = guest.ask("begin", "s1", "4")
    assert begun.of("app")[0][2:4] == ["failed", "no answer in time"] or begun.status != 0
    guest.eventually("! pgrep -f '^sleep 77' >/dev/null")

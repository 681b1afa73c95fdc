"""The databases of the benchmark: how each is started, filled and stopped."""

import hashlib
import os
import pathlib
import sqlite3
import subprocess
import time

HERE = pathlib.Path(__file__).parent
POSTGRES = pathlib.Path(os.environ["WHARFAGE_TEST_POSTGRES_BIN"])
NOBODY = 65534


def digest(data):
    return "sha256:" + hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()


def rows(arguments):
    """The rows of the helper tables of fill.sql."""
    images = arguments.images
    shared = [f"base {number}" for number in range(3)]
    blobs = [*shared, *(f"layer {image} {layer}" for image in range(1, images + 1) for layer in range(4))]
    second, fourth = digest("image 2"), digest("image 4")
    yield "new_repository", ("number", "name"), ((n, f"r/{n:06}") for n in range(1, arguments.repositories + 1))
    generations = (f"00000000-0000-4000-8000-{n:012x}" for n in range(1, len(blobs) + 1))
    yield (
        "new_blob",
        ("number", "digest", "generation"),
        ((n, digest(blob), generation) for n, (blob, generation) in enumerate(zip(blobs, generations, strict=True), 1)),
    )
    yield (
        "new_image",
        ("number", "digest", "payload", "subject", "fourth"),
        ((n, digest(f"image {n}"), b"{}" * 500, second, fourth) for n in range(1, images + 1)),
    )
    yield (
        "new_edge",
        ("image", "blob"),
        (
            (digest(f"image {n}"), digest(blob))
            for n in range(1, images + 1)
            for blob in (*shared, *(f"layer {n} {layer}" for layer in range(4)))
        ),
    )


class Sqlite:
    """The database of a data folder."""

    name = "SQLite"
    url = None

    def __init__(self, folder):
        self.path = folder / "data/registries/default/metadata.sqlite"

    def fill(self, arguments):
        database = sqlite3.connect(self.path)
        database.execute("PRAGMA foreign_keys = off")
        database.execute("PRAGMA synchronous = off")
        database.execute("PRAGMA cache_size = -1000000")
        database.execute("PRAGMA temp_store = memory")
        for table, columns, values in rows(arguments):
            database.execute(f"CREATE TEMP TABLE {table} ({', '.join(columns)})")
            database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", values)
        text = (HERE / "fill.sql").read_text()
        for statement in text.split(";\n"):
            if statement.strip():
                database.execute(statement)
        database.commit()
        broken = database.execute("SELECT count(*) FROM pragma_foreign_key_check").fetchone()[0]
        assert broken == 0, f"{broken} rows refer to nothing"
        database.close()

    def stop(self):
        pass


class Postgres:
    """A PostgreSQL server on a socket in the folder."""

    name = "PostgreSQL"

    def __init__(self, folder):
        self.folder = folder / "pg"
        self.folder.mkdir()
        self.user = {}
        if os.geteuid() == 0:
            os.chmod(folder, 0o755)
            os.chown(self.folder, NOBODY, NOBODY)
            self.user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        data = self.folder / "data"
        subprocess.run([POSTGRES / "initdb", "--username=wharfage", "--auth=trust", "--encoding=UTF8", "-D", data],
                       check=True, stdout=subprocess.DEVNULL, env=environment, cwd=self.folder, **self.user)  # fmt: skip
        settings = ["-c", "listen_addresses=", "-c", "shared_buffers=512MB", "-c", "max_wal_size=4GB"]
        with open(folder / "pg.log", "ab") as log:
            self.server = subprocess.Popen([POSTGRES / "postgres", "-D", data, "-k", self.folder, *settings],
                                           env=environment, cwd=self.folder, stdout=log, stderr=log, **self.user)  # fmt: skip
        self.url = "postgres://wharfage@" + str(self.folder).replace("/", "%2F") + "/wharfage"
        while subprocess.run([POSTGRES / "createdb", "-h", self.folder, "-U", "wharfage", "wharfage"],
                             check=False, stderr=subprocess.DEVNULL, env=environment, cwd="/").returncode:  # fmt: skip
            time.sleep(0.1)

    def fill(self, arguments):
        command = [POSTGRES / "psql", "-h", self.folder, "-U", "wharfage", "-v", "ON_ERROR_STOP=1", "-q", "wharfage"]
        psql = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd="/")
        write = psql.stdin.write
        types = {"number": "bigint", "payload": "bytea"}
        for table, columns, values in rows(arguments):
            columns_typed = ", ".join(f"{column} {types.get(column, 'text')}" for column in columns)
            write(f"CREATE TEMP TABLE {table} ({columns_typed});\nCOPY {table} FROM STDIN;\n")
            for row in values:
                text = ("\\\\x" + value.hex() if isinstance(value, bytes) else str(value) for value in row)
                write("\t".join(text) + "\n")
            write(f"\\.\nANALYZE {table};\n")
        for statement in (HERE / "fill.sql").read_text().split(";\n"):
            write(f"{statement};\nANALYZE;\n")
        # As autovacuum leaves it in time.
        write("VACUUM ANALYZE;\nCHECKPOINT;\n")
        psql.stdin.close()
        assert psql.wait() == 0

    def stop(self):
        self.server.terminate()
        self.server.wait()

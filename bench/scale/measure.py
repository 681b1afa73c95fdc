"""How long each operation of a large registry takes. See bench/scale/run."""

import argparse
import hashlib
import http.client
import json
import os
import pathlib
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

HERE = pathlib.Path(__file__).parent
BINARY = os.environ["WHARFAGE_TEST_BINARY"]
POSTGRES = pathlib.Path(os.environ["WHARFAGE_TEST_POSTGRES_BIN"])
KEY, SECRET = "AKIAEXAMPLEEXAMPLE00", "example-secret-of-a-benchmark-only-000000"
NOBODY = 65534
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
BASE = b"the base layer of every image" * 1000


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def digest(data):
    return "sha256:" + hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()


class Serve:
    """A registry that serves."""

    def __init__(self, folder, port, url=None):
        self.port = port
        environment = {"PATH": "/usr/bin:/bin", "WHARFAGE_ACCESS_KEY_ID": KEY, "WHARFAGE_SECRET_ACCESS_KEY": SECRET}
        if url:
            environment["WHARFAGE_DATABASE_URL"] = url
        listen = ["--listen", f"127.0.0.1:{port}", "--operations-listen", f"127.0.0.1:{port + 1}"]
        self.log = open(folder / "serve.log", "ab")
        command = [BINARY, "serve", "--data", str(folder / "data"), "--log", "warn", *listen]
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port + 1}/readyz", timeout=5).read()
                return
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit((folder / "serve.log").read_text()) from None
                time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def ecr(self):
        config = Config(retries={"max_attempts": 1}, connect_timeout=5, read_timeout=300)
        return boto3.client("ecr", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="local-1",
                            aws_access_key_id=KEY, aws_secret_access_key=SECRET, config=config)  # fmt: skip


class Oci:
    """A client of /v2/ on one connection."""

    def __init__(self, port, token):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        self.headers = {"Authorization": "Basic " + token}

    def call(self, method, path, body=None, headers=(), expect=(200, 201, 202, 204)):
        self.connection.request(method, path, body, {**self.headers, **dict(headers)})
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status in expect, (method, path, answer.status, content[:300])
        return answer, content

    def blob(self, repository, data):
        name = digest(data)
        self.call("POST", f"/v2/{repository}/blobs/uploads/?digest={name}", data, {"Content-Type": "application/octet-stream"})
        return name


def rows(arguments):
    """The rows of the helper tables of fill.sql."""
    images = arguments.images
    shared = [f"base {number}" for number in range(3)]
    blobs = [*shared, *(f"layer {image} {layer}" for image in range(1, images + 1) for layer in range(4))]
    subject = digest("image 1")
    yield "new_repository", ("number", "name"), ((n, f"r/{n:06}") for n in range(1, arguments.repositories + 1))
    generations = (f"00000000-0000-4000-8000-{n:012x}" for n in range(1, len(blobs) + 1))
    yield "new_blob", ("number", "digest", "generation"), (
        (n, digest(blob), generation) for n, (blob, generation) in enumerate(zip(blobs, generations, strict=True), 1)
    )
    yield "new_image", ("number", "digest", "payload", "subject"), (
        (n, digest(f"image {n}"), b"{}" * 500, subject) for n in range(1, images + 1)
    )
    yield "new_edge", ("image", "blob"), (
        (digest(f"image {n}"), digest(blob))
        for n in range(1, images + 1)
        for blob in (*shared, *(f"layer {n} {layer}" for layer in range(4)))
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
        for table, columns, values in rows(arguments):
            database.execute(f"CREATE TEMP TABLE {table} ({', '.join(columns)})")
            database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", values)
        for statement in (HERE / "fill.sql").read_text().split(";\n"):
            if statement.strip():
                database.execute(statement)
        database.commit()
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
        settings = ["-c", "listen_addresses=", "-c", "shared_buffers=512MB"]
        self.log = open(folder / "pg.log", "ab")
        self.server = subprocess.Popen([POSTGRES / "postgres", "-D", data, "-k", self.folder, *settings],
                                       env=environment, cwd=self.folder, stdout=self.log, stderr=self.log, **self.user)  # fmt: skip
        self.url = "postgres://wharfage@" + str(self.folder).replace("/", "%2F") + "/wharfage"
        while subprocess.run([POSTGRES / "createdb", "-h", self.folder, "-U", "wharfage", "wharfage"],
                             stderr=subprocess.DEVNULL, env=environment, cwd="/").returncode:  # fmt: skip
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
            write("\\.\n")
        write((HERE / "fill.sql").read_text())
        write("ANALYZE;\n")
        psql.stdin.close()
        assert psql.wait() == 0

    def stop(self):
        self.server.terminate()
        self.server.wait()


class Table:
    """Times of calls, by what they are."""

    def __init__(self, rounds):
        self.rounds, self.times = rounds, {}

    def time(self, name, call, rounds=None):
        times = []
        for number in range(rounds or self.rounds):
            begin = time.perf_counter()
            try:
                call(number)
            except ClientError as error:
                raise SystemExit(f"{name}: {error}") from None
            times.append((time.perf_counter() - begin) * 1000)
        self.times[name] = (statistics.median(times), max(times))


def measure(serve, arguments):
    table = Table(arguments.rounds)
    ecr = serve.ecr()
    token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
    oci = Oci(serve.port, token)
    big, images = "r/000001", arguments.images
    base, shared, own = digest(BASE), digest("base 1"), digest("layer 9 1")
    stamp = str(time.time())
    config = oci.blob(big, b"{}")

    def manifest(text, media_type=MANIFEST, layers=(), **more):
        document = {"schemaVersion": 2, "mediaType": media_type, **more, "annotations": {"n": stamp + text}}
        if media_type == MANIFEST:
            document["config"] = {"mediaType": CONFIG, "digest": config, "size": 2}
            document["layers"] = list(layers)
        return json.dumps(document)

    def pages(operation, member, **more):
        """The first page, one from the middle, and the last."""

        def call(number):
            answer = getattr(ecr, operation)(**more, **({"nextToken": tokens[number % len(tokens)]} if tokens else {}))
            return answer[member]

        tokens, answer = [], getattr(ecr, operation)(**more)
        for _ in range(5):
            if "nextToken" not in answer:
                break
            tokens.append(answer["nextToken"])
            answer = getattr(ecr, operation)(**more, nextToken=tokens[-1])
        return call

    put = {"repositoryName": big}
    time_ = table.time
    time_("GetAuthorizationToken", lambda n: ecr.get_authorization_token())
    time_("DescribeRegistry", lambda n: ecr.describe_registry())
    time_("CreateRepository", lambda n: ecr.create_repository(repositoryName=f"new/{stamp}-{n}"))
    time_("DescribeRepositories, by name", lambda n: ecr.describe_repositories(repositoryNames=[f"r/{n + 500:06}"]))
    time_("DescribeRepositories, 100 names", lambda n: ecr.describe_repositories(
        repositoryNames=[f"r/{n * 100 % (arguments.repositories - 200) + k + 1:06}" for k in range(100)]))  # fmt: skip
    time_("DescribeRepositories, a page of 1,000", pages("describe_repositories", "repositories", maxResults=1000))
    for status in ("ANY", "TAGGED", "UNTAGGED"):
        given = {"filter": {"tagStatus": status}}
        time_(f"DescribeImages, a page of 1,000, {status}", pages("describe_images", "imageDetails", **put, **given, maxResults=1000))
        time_(f"ListImages, a page of 1,000, {status}", pages("list_images", "imageIds", **put, **given, maxResults=1000))
    some = [{"imageDigest": digest(f"image {n}")} for n in range(1, 101)]
    time_("DescribeImages, 100 digests", lambda n: ecr.describe_images(**put, imageIds=some))
    time_("BatchGetImage, 100 digests", lambda n: ecr.batch_get_image(**put, imageIds=some))
    time_("BatchGetImage, a tag", lambda n: ecr.batch_get_image(**put, imageIds=[{"imageTag": "t100"}]))
    time_("ListImageReferrers", lambda n: ecr.list_image_referrers(**put, subjectId={"imageDigest": digest("image 1")}))
    time_("BatchCheckLayerAvailability, a layer of one image",
          lambda n: ecr.batch_check_layer_availability(**put, layerDigests=[own]))  # fmt: skip
    time_("BatchCheckLayerAvailability, a layer of all images",
          lambda n: ecr.batch_check_layer_availability(**put, layerDigests=[shared]))  # fmt: skip
    hundred = [digest(f"layer {n} 1") for n in range(1, 100)] + [shared]
    time_("BatchCheckLayerAvailability, 100 layers", lambda n: ecr.batch_check_layer_availability(**put, layerDigests=hundred))
    time_("GetDownloadUrlForLayer, a layer of all images", lambda n: ecr.get_download_url_for_layer(**put, layerDigest=shared))
    time_("PutImage, new", lambda n: ecr.put_image(**put, imageManifest=manifest(f"api {n}"), imageTag="moving"))
    time_("PutImage, an index of 100 images", lambda n: ecr.put_image(**put, imageManifest=manifest(
        f"index {n}", INDEX, manifests=[{"mediaType": MANIFEST, "size": 1000, "digest": one["imageDigest"]} for one in some])))  # fmt: skip
    time_("UpdateImageStorageClass", lambda n: ecr.update_image_storage_class(
        **put, imageId={"imageDigest": digest(f"image {1000 + 100 * n + 11}")}, targetStorageClass="ARCHIVE"))  # fmt: skip
    time_("BatchDeleteImage, a tag", lambda n: ecr.batch_delete_image(**put, imageIds=[{"imageTag": f"t{2000 + 100 * n}"}]))
    time_("BatchDeleteImage, 100 digests", lambda n: ecr.batch_delete_image(
        **put, imageIds=[{"imageDigest": digest(f"image {images // 2 + 100 * n + k}")} for k in range(100)]), rounds=10)  # fmt: skip
    policy = json.dumps({"Version": "2012-10-17", "Statement": [
        {"Sid": "a", "Effect": "Allow", "Principal": "*", "Action": ["ecr:BatchGetImage"]}]})  # fmt: skip
    time_("SetRepositoryPolicy", lambda n: ecr.set_repository_policy(**put, policyText=policy))
    time_("GetRepositoryPolicy", lambda n: ecr.get_repository_policy(**put))
    time_("DeleteRepositoryPolicy", lambda n: ecr.delete_repository_policy(**put), rounds=1)
    time_("PutImageTagMutability", lambda n: ecr.put_image_tag_mutability(**put, imageTagMutability="MUTABLE"))
    time_("PutImageScanningConfiguration", lambda n: ecr.put_image_scanning_configuration(
        **put, imageScanningConfiguration={"scanOnPush": False}))  # fmt: skip
    time_("BatchGetRepositoryScanningConfiguration", lambda n: ecr.batch_get_repository_scanning_configuration(
        repositoryNames=[f"r/{k:06}" for k in range(1, 26)]))  # fmt: skip
    arn = ecr.describe_repositories(repositoryNames=[big])["repositories"][0]["repositoryArn"]
    time_("TagResource", lambda n: ecr.tag_resource(resourceArn=arn, tags=[{"Key": "a", "Value": str(n)}]))
    time_("ListTagsForResource", lambda n: ecr.list_tags_for_resource(resourceArn=arn))
    time_("UntagResource", lambda n: ecr.untag_resource(resourceArn=arn, tagKeys=["a"]))
    time_("InitiateLayerUpload", lambda n: ecr.initiate_layer_upload(**put))

    def upload(number):
        data = f"{stamp} {number}".encode()
        begun = ecr.initiate_layer_upload(**put)["uploadId"]
        ecr.upload_layer_part(**put, uploadId=begun, partFirstByte=0, partLastByte=len(data) - 1, layerPartBlob=data)
        ecr.complete_layer_upload(**put, uploadId=begun, layerDigests=[digest(data)])

    time_("InitiateLayerUpload, UploadLayerPart, CompleteLayerUpload", upload)
    text = json.dumps({"rules": [{"rulePriority": 1, "selection": {
        "tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 30000},
        "action": {"type": "expire"}}]})  # fmt: skip
    time_("StartLifecyclePolicyPreview", lambda n: ecr.start_lifecycle_policy_preview(
        repositoryName=f"r/{n + 700:06}", lifecyclePolicyText=text))  # fmt: skip
    time_("GetLifecyclePolicyPreview", lambda n: ecr.get_lifecycle_policy_preview(repositoryName="r/000700"))
    time_("PutLifecyclePolicy", lambda n: ecr.put_lifecycle_policy(repositoryName=f"r/{n + 900:06}", lifecyclePolicyText=text))
    time_("GetLifecyclePolicy", lambda n: ecr.get_lifecycle_policy(repositoryName="r/000900"))
    time_("DeleteLifecyclePolicy", lambda n: ecr.delete_lifecycle_policy(repositoryName=f"r/{n + 900:06}"))

    time_("GET /v2/", lambda n: oci.call("GET", "/v2/"))
    time_("GET /v2/_catalog, a page of 1,000", lambda n: oci.call("GET", "/v2/_catalog?n=1000&last=r/050000"))
    time_("GET tags/list, a page of 1,000", lambda n: oci.call("GET", f"/v2/{big}/tags/list?n=1000"))
    time_("GET manifest by tag", lambda n: oci.call("GET", f"/v2/{big}/manifests/moving"))
    time_("HEAD manifest by digest", lambda n: oci.call("HEAD", f"/v2/{big}/manifests/{digest(f'image {n + 21}')}", expect=(200, 404)))
    time_("GET referrers", lambda n: oci.call("GET", f"/v2/{big}/referrers/{digest('image 1')}"))
    time_("GET referrers of a type that none has",
          lambda n: oci.call("GET", f"/v2/{big}/referrers/{digest('image 1')}?artifactType=application/none"))  # fmt: skip
    time_("HEAD blob of all images", lambda n: oci.call("HEAD", f"/v2/{big}/blobs/{base}"))
    time_("GET blob", lambda n: oci.call("GET", f"/v2/{big}/blobs/{base}"))
    ecr.put_account_setting(name="BLOB_MOUNTING", value="ENABLED")
    ecr.create_repository(repositoryName=f"mount/{stamp}")
    time_("POST upload, mount without from", lambda n: oci.call(
        "POST", f"/v2/mount/{stamp}/blobs/uploads/?mount={base}"))  # fmt: skip
    time_("POST upload, mount from", lambda n: oci.call("POST", f"/v2/mount/{stamp}/blobs/uploads/?mount={base}&from={big}"))
    time_("POST upload with the blob", lambda n: oci.blob(big, f"{stamp} blob {n}".encode()))

    def manifest_put(text):
        body = manifest(text).encode()
        oci.call("PUT", f"/v2/{big}/manifests/moving", body, {"Content-Type": MANIFEST})
        return digest(body)

    pushed = []
    time_("PUT manifest, new, a tag that moves", lambda n: pushed.append(manifest_put(f"oci {n}")))
    foreign = [{"mediaType": FOREIGN, "digest": digest(f"foreign {n}"), "size": 1, "urls": ["https://example.com/x"]} for n in range(1000)]

    def foreign_put(number):
        body = manifest(f"foreign {number}", layers=foreign).encode()
        oci.call("PUT", f"/v2/{big}/manifests/foreign", body, {"Content-Type": MANIFEST})

    time_("PUT manifest with 1,000 foreign layers", foreign_put, rounds=10)
    time_("DELETE manifest", lambda n: oci.call("DELETE", f"/v2/{big}/manifests/{pushed[n]}"), rounds=len(pushed) - 1)
    time_("DELETE blob", lambda n: oci.call("DELETE", f"/v2/{big}/blobs/{digest(f'{stamp} blob {n}'.encode())}"))
    time_("DeleteRepository, empty", lambda n: ecr.delete_repository(repositoryName=f"new/{stamp}-{n}"))
    time_(f"DeleteRepository of {images:,} images, forced", lambda n: ecr.delete_repository(**put, force=True), rounds=1)
    time_("CreateRepository of that name at once", lambda n: ecr.create_repository(**put), rounds=1)
    begin = time.perf_counter()
    time_("GET manifest while its images go", lambda n: oci.call("GET", f"/v2/{big}/manifests/none", expect=(404,)))
    time_("POST upload with the blob meanwhile", lambda n: oci.blob(big, f"{stamp} later {n}".encode()))
    time_("GET /readyz meanwhile", lambda n: urllib.request.urlopen(f"http://127.0.0.1:{serve.port + 1}/readyz").read())
    time_("GET /metrics meanwhile", lambda n: urllib.request.urlopen(f"http://127.0.0.1:{serve.port + 1}/metrics").read())
    while 'wharfage_jobs_ended_total{kind="delete-repository",state="done"}' not in (
        metrics := urllib.request.urlopen(f"http://127.0.0.1:{serve.port + 1}/metrics").read().decode()
    ) or 'wharfage_jobs{kind="delete-repository"' in metrics:
        time.sleep(0.2)
    say(f"the repository's rows were gone after {time.perf_counter() - begin:.1f} s")
    return table.times


def run(kind, arguments):
    with tempfile.TemporaryDirectory(prefix="wharfage-scale-") as folder:
        folder = pathlib.Path(folder)
        database = kind(folder)
        port = arguments.port
        try:
            serve = Serve(folder, port, database.url)
            ecr = serve.ecr()
            ecr.create_repository(repositoryName="seed")
            Oci(port, ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]).blob("seed", BASE)
            serve.stop()
            begin = time.perf_counter()
            database.fill(arguments)
            say(f"{database.name}: filled in {time.perf_counter() - begin:.0f} s")
            serve = Serve(folder, port, database.url)
            try:
                return measure(serve, arguments)
            finally:
                serve.stop()
        finally:
            database.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repositories", type=int, default=99_800, help="the limit of a registry is 100,000")
    parser.add_argument("--images", type=int, default=99_700, help="the limit of a repository is 100,000")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--port", type=int, default=17_610)
    parser.add_argument("--database", choices=["sqlite", "postgres"])
    arguments = parser.parse_args()
    kinds = [kind for kind in (Sqlite, Postgres) if arguments.database in (None, kind.__name__.lower())]
    results = {kind.name: run(kind, arguments) for kind in kinds}
    print("| Operation |" + "".join(f" {name}: median | worst |" for name in results))
    print("|---|" + "---:|---:|" * len(results))
    for operation in next(iter(results.values())):
        times = (results[name].get(operation, (0, 0)) for name in results)
        print(f"| {operation} |" + "".join(f" {median:.1f} | {worst:.1f} |" for median, worst in times))


main()

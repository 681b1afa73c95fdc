"""How long each operation of a large registry takes. See bench/scale/run."""

import argparse
import json
import pathlib
import signal
import statistics
import sys
import tempfile
import time

from botocore.exceptions import ClientError

from clients import Oci, Serve, Signed, Wire
from databases import Postgres, Sqlite, digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
BASE = b"the base layer of every image" * 1000
BIG = "r/000001"
NONE = digest("none")


def say(*words):
    print(*words, file=sys.stderr, flush=True)


class Table:
    """Times of calls in milliseconds, by what they are."""

    def __init__(self, rounds, wire):
        self.rounds, self.wire, self.times = rounds, wire, {}

    def note(self, name, times):
        self.times[name] = (statistics.median(times), max(times), len(times))
        if max(times) > 50:
            say(f"over 50 ms: {name}: median {statistics.median(times):.1f}, worst {max(times):.1f} of {len(times)}")

    def time(self, name, call, rounds=None):
        """Calls with the number of the round; what the call does between its requests does not count."""
        times = []
        for number in range(rounds or self.rounds):
            self.wire.take()
            try:
                call(number)
            except (ClientError, AssertionError) as error:
                raise SystemExit(f"{name}: {error}") from None
            times.append(self.wire.take() * 1000)
        self.note(name, times)

    def walk(self, name, page, token="nextToken"):
        """Reads a listing to its end, or to its 200th page: each page is one time."""
        times, after = [], {}
        while len(times) < 200:
            self.wire.take()
            try:
                answer = page(**after)
            except (ClientError, AssertionError) as error:
                raise SystemExit(f"{name}: {error}") from None
            times.append(self.wire.take() * 1000)
            if not answer.get(token):
                break
            after = {token: answer[token]}
        self.note(f"{name} ({len(times)} pages)", times)


class Measurement:
    """One registry, and its clients."""

    def __init__(self, serve, arguments):
        self.serve, self.images, self.repositories = serve, arguments.images, arguments.repositories
        wire = Wire()
        self.ecr, self.sts = Signed(serve.port, wire), Signed(serve.port, wire, "sts")
        self.table = Table(arguments.rounds, wire)
        token = self.ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        self.oci = Oci(serve.port, token, wire)
        self.stamp = str(time.time())
        self.config = self.oci.blob(BIG, b"{}")

    def image(self, text, layers=(), **more):
        config = {"mediaType": CONFIG, "digest": self.config, "size": 2}
        return {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": list(layers),
                "annotations": {"n": f"{self.stamp} {text}"}, **more}  # fmt: skip

    def index(self, text, children):
        children = [{"mediaType": MANIFEST, "size": 1000, "digest": child} for child in children]
        return {"schemaVersion": 2, "mediaType": INDEX, "manifests": children, "annotations": {"n": f"{self.stamp} {text}"}}

    def active(self, number):
        """The digest of an active image that no index holds and that nothing refers to."""
        return digest(f"image {number * 10 + 12}")

    def registry(self):
        ecr, time_ = self.ecr, self.table.time
        time_("GetAuthorizationToken", lambda n: ecr.get_authorization_token())
        time_("GetCallerIdentity", lambda n: self.sts.get_caller_identity())
        time_("DescribeRegistry", lambda n: ecr.describe_registry())
        policy = json.dumps({"Version": "2012-10-17", "Statement": [
            {"Sid": "a", "Effect": "Allow", "Principal": {"AWS": "*"}, "Action": ["ecr:ReplicateImage"],
             "Resource": ["arn:aws:ecr:local-1:000000000000:repository/*"]}]})  # fmt: skip
        time_("PutRegistryPolicy", lambda n: ecr.put_registry_policy(policyText=policy))
        time_("GetRegistryPolicy", lambda n: ecr.get_registry_policy())
        time_("DeleteRegistryPolicy", lambda n: ecr.delete_registry_policy(), rounds=1)
        time_("PutRegistryScanningConfiguration", lambda n: ecr.put_registry_scanning_configuration(scanType="BASIC", rules=[]))
        time_("GetRegistryScanningConfiguration", lambda n: ecr.get_registry_scanning_configuration())
        time_("PutAccountSetting", lambda n: ecr.put_account_setting(name="BLOB_MOUNTING", value="ENABLED"))
        time_("GetAccountSetting", lambda n: ecr.get_account_setting(name="BLOB_MOUNTING"))

    def repositories_(self):
        ecr, time_, walk, count = self.ecr, self.table.time, self.table.walk, self.repositories
        time_("CreateRepository", lambda n: ecr.create_repository(repositoryName=f"new/{self.stamp}-{n}"))
        time_("DescribeRepositories, by name", lambda n: ecr.describe_repositories(repositoryNames=[f"r/{n + 500:06}"]))
        time_("DescribeRepositories, 100 names", lambda n: ecr.describe_repositories(
            repositoryNames=[f"r/{n * 100 % (count - 200) + k + 1:06}" for k in range(100)]))  # fmt: skip
        time_("DescribeRepositories, a page of 1", lambda n: ecr.describe_repositories(maxResults=1))
        walk("DescribeRepositories, every page of 1,000", lambda **after: ecr.describe_repositories(maxResults=1000, **after))
        big = {"repositoryName": BIG}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [
            {"Sid": "a", "Effect": "Allow", "Principal": "*", "Action": ["ecr:BatchGetImage"]}]})  # fmt: skip
        time_("SetRepositoryPolicy", lambda n: ecr.set_repository_policy(**big, policyText=policy))
        time_("GetRepositoryPolicy", lambda n: ecr.get_repository_policy(**big))
        time_("DeleteRepositoryPolicy", lambda n: ecr.delete_repository_policy(**big), rounds=1)
        time_("PutImageTagMutability", lambda n: ecr.put_image_tag_mutability(**big, imageTagMutability="MUTABLE"))
        time_("PutImageScanningConfiguration", lambda n: ecr.put_image_scanning_configuration(
            **big, imageScanningConfiguration={"scanOnPush": False}))  # fmt: skip
        time_("BatchGetRepositoryScanningConfiguration, 25 names", lambda n: ecr.batch_get_repository_scanning_configuration(
            repositoryNames=[f"r/{k:06}" for k in range(1, 26)]))  # fmt: skip
        arn = ecr.describe_repositories(repositoryNames=[BIG])["repositories"][0]["repositoryArn"]
        time_("TagResource", lambda n: ecr.tag_resource(resourceArn=arn, tags=[{"Key": "a", "Value": str(n)}]))
        time_("ListTagsForResource", lambda n: ecr.list_tags_for_resource(resourceArn=arn))
        time_("UntagResource", lambda n: ecr.untag_resource(resourceArn=arn, tagKeys=["a"]))

    def listings(self):
        ecr, walk, time_, big = self.ecr, self.table.walk, self.table.time, {"repositoryName": BIG}
        for tags in ("ANY", "TAGGED", "UNTAGGED"):
            for status in ("ACTIVE", "ARCHIVED", "ANY"):
                given = {**big, "filter": {"tagStatus": tags, "imageStatus": status}}
                for operation in ("DescribeImages", "ListImages"):
                    call = getattr(ecr, "describe_images" if operation == "DescribeImages" else "list_images")
                    walk(f"{operation}, {tags}, {status}, every page of 1,000", lambda call=call, given=given, **after: call(
                        **given, **after, maxResults=1000))  # fmt: skip
        time_("DescribeImages, a page of 1", lambda n: ecr.describe_images(**big, maxResults=1))
        time_("ListImages, a page of 1", lambda n: ecr.list_images(**big, maxResults=1))
        some = [{"imageDigest": digest(f"image {n}")} for n in range(1, 101)]
        tagged = [{"imageTag": f"t{n}"} for n in range(10, 1010, 10)]
        time_("DescribeImages, 100 digests", lambda n: ecr.describe_images(**big, imageIds=some))
        time_("DescribeImages, 100 tags", lambda n: ecr.describe_images(**big, imageIds=tagged))
        time_("BatchGetImage, 100 digests", lambda n: ecr.batch_get_image(**big, imageIds=some))
        time_("BatchGetImage, 100 tags", lambda n: ecr.batch_get_image(**big, imageIds=tagged))
        time_("BatchGetImage, a tag", lambda n: ecr.batch_get_image(**big, imageIds=[{"imageTag": "t100"}]))
        subject = {"subjectId": {"imageDigest": digest("image 2")}}
        walk("ListImageReferrers, pages of 50", lambda **after: ecr.list_image_referrers(**big, **subject, **after, maxResults=50))
        for name, given in [("ANY", {"artifactStatus": "ANY"}), ("of a type that none has", {"artifactTypes": ["application/none"]})]:
            time_(f"ListImageReferrers, {name}", lambda n, given=given: ecr.list_image_referrers(
                **big, **subject, filter=given, maxResults=50))  # fmt: skip

    def layers(self):
        ecr, time_, big = self.ecr, self.table.time, {"repositoryName": BIG}
        shared, own = digest("base 1"), digest("layer 12 1")
        hundred = [digest(f"layer {n} 1") for n in range(1, 100)] + [shared]
        check = ecr.batch_check_layer_availability
        time_("BatchCheckLayerAvailability, a layer of one image", lambda n: check(**big, layerDigests=[own]))
        time_("BatchCheckLayerAvailability, a layer of all images", lambda n: check(**big, layerDigests=[shared]))
        common = digest(BASE)
        time_("BatchCheckLayerAvailability, a layer of all repositories", lambda n: check(**big, layerDigests=[common]))
        time_("BatchCheckLayerAvailability, 100 layers", lambda n: check(**big, layerDigests=hundred))
        time_("GetDownloadUrlForLayer, a layer of all images", lambda n: ecr.get_download_url_for_layer(**big, layerDigest=shared))
        time_("InitiateLayerUpload", lambda n: ecr.initiate_layer_upload(**big))

        def upload(number):
            data = f"{self.stamp} {number}".encode()
            begun = ecr.initiate_layer_upload(**big)["uploadId"]
            ecr.upload_layer_part(**big, uploadId=begun, partFirstByte=0, partLastByte=len(data) - 1, layerPartBlob=data)
            ecr.complete_layer_upload(**big, uploadId=begun, layerDigests=[digest(data)])

        time_("InitiateLayerUpload, UploadLayerPart and CompleteLayerUpload, together", upload)

    def images_(self):
        ecr, time_, big = self.ecr, self.table.time, {"repositoryName": BIG}
        put = lambda document, **more: ecr.put_image(**big, imageManifest=json.dumps(document), **more)  # noqa: E731
        time_("PutImage, new, a tag that moves", lambda n: put(self.image(f"api {n}"), imageTag="moving"))
        time_("PutImage, there already, a new tag", lambda n: put(self.image("api 0"), imageTag=f"n{n}"))
        hundred = [digest(f"image {n}") for n in range(1, 1001, 10)]
        time_("PutImage, an index of 100 images, archived ones at first", lambda n: put(self.index(f"index {n}", hundred)))
        archive = lambda name, class_: ecr.update_image_storage_class(  # noqa: E731
            **big, imageId={"imageDigest": name}, targetStorageClass=class_)  # fmt: skip
        time_("UpdateImageStorageClass, to the archive", lambda n: archive(self.active(n + 200), "ARCHIVE"))
        time_("UpdateImageStorageClass, back", lambda n: archive(self.active(n + 200), "STANDARD"))

        def refused(number, name):
            try:
                archive(name, "ARCHIVE")
            except ClientError as error:
                assert "referenced by manifest list" in str(error), error
            else:
                raise AssertionError("an image that indexes hold was archived")

        time_("UpdateImageStorageClass of an image that 10,000 active indexes hold", lambda n: refused(n, digest("image 2")))
        time_("UpdateImageStorageClass of an image that 10,000 archived indexes hold",
              lambda n: archive(digest("image 4"), ("ARCHIVE", "STANDARD")[n % 2]))  # fmt: skip
        delete = lambda *ids: ecr.batch_delete_image(**big, imageIds=list(ids))  # noqa: E731

        def held(number):
            answer = delete({"imageDigest": digest("image 2")}, {"imageDigest": digest("image 4")})
            codes = [failure["failureCode"] for failure in answer["failures"]]
            assert codes == ["ImageReferencedByManifestList"] * 2, answer

        time_("BatchDeleteImage of two images that 30,000 indexes hold", held)
        time_("BatchDeleteImage, a tag", lambda n: delete({"imageTag": f"t{5000 + 10 * n}"}))
        time_("BatchDeleteImage, 100 tags", lambda n: delete(
            *({"imageTag": f"t{6000 + 1000 * n + 10 * k}"} for k in range(100))), rounds=10)  # fmt: skip
        time_("BatchDeleteImage, 100 digests", lambda n: delete(
            *({"imageDigest": digest(f"image {self.images // 2 + 100 * n + k}")} for k in range(100))), rounds=10)  # fmt: skip

    def lifecycle(self):
        ecr, time_, walk = self.ecr, self.table.time, self.table.walk
        rule = {"tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 30000}
        nothing = json.dumps({"rules": [{"rulePriority": 1, "selection": rule, "action": {"type": "expire"}}]})
        rule = {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 5}
        all_ = json.dumps({"rules": [{"rulePriority": 1, "selection": rule, "action": {"type": "expire"}}]})
        small = {"repositoryName": "r/000900"}
        time_("PutLifecyclePolicy", lambda n: ecr.put_lifecycle_policy(repositoryName=f"r/{n + 900:06}", lifecyclePolicyText=nothing))
        time_("GetLifecyclePolicy", lambda n: ecr.get_lifecycle_policy(**small))
        time_("DeleteLifecyclePolicy", lambda n: ecr.delete_lifecycle_policy(repositoryName=f"r/{n + 900:06}"))
        time_("StartLifecyclePolicyPreview", lambda n: ecr.start_lifecycle_policy_preview(
            repositoryName=f"r/{n + 700:06}", lifecyclePolicyText=nothing))  # fmt: skip
        big = {"repositoryName": BIG}
        self.table.wire.take()
        for round_ in ("", " again"):
            time_(f"StartLifecyclePolicyPreview of all images{round_}", lambda n: ecr.start_lifecycle_policy_preview(
                **big, lifecyclePolicyText=all_), rounds=1)  # fmt: skip
            self.meanwhile(
                f"a preview of all images runs{round_}", lambda: ecr.get_lifecycle_policy_preview(**big)["status"] == "IN_PROGRESS"
            )
        walk("GetLifecyclePolicyPreview, pages of 100", lambda **after: ecr.get_lifecycle_policy_preview(**big, **after, maxResults=100))
        for tags in ("TAGGED", "UNTAGGED"):
            walk(f"GetLifecyclePolicyPreview, {tags}, pages of 100", lambda tags=tags, **after: ecr.get_lifecycle_policy_preview(
                **big, **after, filter={"tagStatus": tags}, maxResults=100))  # fmt: skip
        some = [{"imageDigest": digest(f"image {n}")} for n in range(1, 101)]
        time_("GetLifecyclePolicyPreview, 100 digests", lambda n: ecr.get_lifecycle_policy_preview(**big, imageIds=some))
        time_("GetLifecyclePolicyPreview, a tag", lambda n: ecr.get_lifecycle_policy_preview(**big, imageIds=[{"imageTag": "t50010"}]))
        time_("PutLifecyclePolicy that keeps all images", lambda n: ecr.put_lifecycle_policy(**big, lifecyclePolicyText=nothing), rounds=1)
        self.meanwhile("a policy looks at all images", lambda: self.waits("lifecycle"))
        ecr.delete_lifecycle_policy(**big)

    def waits(self, kind):
        lines = self.serve.get("/metrics").splitlines()
        return any(line.startswith(f'wharfage_jobs{{kind="{kind}"') and not line.endswith(" 0") for line in lines)

    def meanwhile(self, what, goes_on):
        """Times of reads and writes of everybody else while something large is under way."""
        reads, writes, begin = [], [], time.perf_counter()
        while True:
            self.table.wire.take()
            self.oci.call("GET", f"/v2/{BIG}/manifests/t100")
            reads.append(self.table.wire.take() * 1000)
            self.ecr.tag_resource(resourceArn="arn:aws:ecr:local-1:000000000000:repository/r/000400", tags=[{"Key": "a", "Value": "b"}])
            writes.append(self.table.wire.take() * 1000)
            if not goes_on():
                break
        say(f"{what}: {time.perf_counter() - begin:.1f} s")
        self.table.note(f"GET manifest while {what}", reads)
        self.table.note(f"TagResource while {what}", writes)

    def v2_reads(self):
        call, time_ = self.oci.call, self.table.time

        def page(path):
            def read(next=path):
                answer, _ = call("GET", next)
                link = answer.getheader("Link", "")
                return {"next": link[1 : link.index(">")] if link else None}

            return read

        time_("GET /v2/", lambda n: call("GET", "/v2/"))
        self.table.walk("GET _catalog, every page of 1,000", page("/v2/_catalog?n=1000"), "next")
        time_("GET _catalog, a page of 1", lambda n: call("GET", "/v2/_catalog?n=1&last=r/050000"))
        self.table.walk("GET tags/list, every page of 1,000", page(f"/v2/{BIG}/tags/list?n=1000"), "next")
        time_("GET tags/list, a page of 1 behind the tags of archived images", lambda n: call("GET", f"/v2/{BIG}/tags/list?n=1"))
        time_("GET tags/list of its last tag", lambda n: call("GET", f"/v2/{BIG}/tags/list?last=t9"))
        time_("GET manifest by tag", lambda n: call("GET", f"/v2/{BIG}/manifests/t100"))
        time_("HEAD manifest by digest", lambda n: call("HEAD", f"/v2/{BIG}/manifests/{self.active(n)}"))
        time_("GET manifest of an archived image", lambda n: call("GET", f"/v2/{BIG}/manifests/a105", expect=(404,)))
        time_("HEAD manifest that is not there", lambda n: call("HEAD", f"/v2/{BIG}/manifests/{NONE}", expect=(404,)))
        subject = f"/v2/{BIG}/referrers/{digest('image 2')}"
        self.table.walk("GET referrers, every page", page(subject), "next")
        self.table.walk("GET referrers of a type, every page", page(f"{subject}?artifactType=application/x"), "next")
        time_("GET referrers of a type that none has", lambda n: call("GET", f"{subject}?artifactType=application/none"))
        time_("GET referrers of nothing", lambda n: call("GET", f"/v2/{BIG}/referrers/{NONE}"))
        base = f"/v2/{BIG}/blobs/{digest(BASE)}"
        time_("HEAD blob", lambda n: call("HEAD", base))
        time_("GET blob", lambda n: call("GET", base))
        time_("GET blob, a range", lambda n: call("GET", base, headers={"Range": "bytes=10-19"}))
        time_("HEAD blob that all images have", lambda n: call("HEAD", f"/v2/{BIG}/blobs/{digest('base 2')}"))
        time_("HEAD blob that is not there", lambda n: call("HEAD", f"/v2/{BIG}/blobs/{NONE}", expect=(404,)))

    def v2_writes(self):
        call, time_, base = self.oci.call, self.table.time, digest(BASE)
        target = f"mount/{self.stamp}"
        self.ecr.create_repository(repositoryName=target)
        self.ecr.put_account_setting(name="BLOB_MOUNTING", value="ENABLED")
        uploads = f"/v2/{target}/blobs/uploads/"

        def mounted(path):
            call("POST", path, expect=(201,))
            call("DELETE", f"/v2/{target}/blobs/{base}", expect=(202,))

        time_("POST upload, mount without from, and DELETE blob", lambda n: mounted(f"{uploads}?mount={base}"))
        time_("POST upload, mount from, and DELETE blob", lambda n: mounted(f"{uploads}?mount={base}&from=r/000500"))
        time_("POST upload, mount of nothing", lambda n: call("POST", f"{uploads}?mount={NONE}", expect=(202,)))
        time_("POST upload with a new blob", lambda n: self.oci.blob(BIG, f"{self.stamp} blob {n}".encode()))
        time_("POST upload with a blob that is there", lambda n: self.oci.blob(BIG, BASE))

        def chunks(number):
            data = f"{self.stamp} chunks {number}".encode()
            answer, _ = call("POST", f"/v2/{BIG}/blobs/uploads/")
            octets = {"Content-Type": "application/octet-stream"}
            answer, _ = call("PATCH", answer.getheader("Location"), data[:5], {**octets, "Content-Range": "0-4"})
            answer, _ = call("GET", answer.getheader("Location"))
            location = answer.getheader("Location")
            call("PUT", f"{location}{'&' if '?' in location else '?'}digest={digest(data)}", data[5:], octets)

        time_("POST, PATCH, GET and PUT upload, together", chunks)
        time_("POST and DELETE upload, together", lambda n: call(
            "DELETE", call("POST", f"/v2/{BIG}/blobs/uploads/")[0].getheader("Location")))  # fmt: skip
        pushed = []
        time_("PUT manifest, new, a tag that moves", lambda n: pushed.append(
            self.oci.manifest(BIG, "moving", self.image(f"oci {n}"), MANIFEST)))  # fmt: skip
        shared = [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(f"base {k}"), "size": 1000} for k in range(3)
        ]
        time_("PUT manifest with layers of all images", lambda n: self.oci.manifest(
            BIG, "shared", self.image(f"shared {n}", shared), MANIFEST))  # fmt: skip
        common = [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": base, "size": len(BASE)}]
        time_("PUT manifest with a layer of all repositories", lambda n: self.oci.manifest(
            BIG, "common", self.image(f"common {n}", common), MANIFEST))  # fmt: skip
        time_("GetDownloadUrlForLayer, a layer of all repositories",
              lambda n: self.ecr.get_download_url_for_layer(repositoryName=BIG, layerDigest=base))  # fmt: skip
        time_("POST upload, mount into a large repository", lambda n: call(
            "POST", f"/v2/{BIG}/blobs/uploads/?mount={base}&from=r/000500", expect=(201,)))  # fmt: skip
        subject = {"subject": {"mediaType": MANIFEST, "size": 1000, "digest": digest("image 2")}}
        time_("PUT manifest with a subject", lambda n: self.oci.manifest(BIG, "referrer", self.image(f"referrer {n}", **subject), MANIFEST))
        foreign = [
            {"mediaType": FOREIGN, "digest": digest(f"foreign {n}"), "size": 1, "urls": ["https://example.com/x"]} for n in range(1000)
        ]
        time_("PUT manifest with 1,000 foreign layers", lambda n: self.oci.manifest(
            BIG, "foreign", self.image(f"foreign {n}", foreign), MANIFEST), rounds=10)  # fmt: skip
        time_("DELETE manifest", lambda n: call("DELETE", f"/v2/{BIG}/manifests/{pushed[n]}"))
        time_(
            "DELETE manifest that 20,000 indexes hold",
            lambda n: call("DELETE", f"/v2/{BIG}/manifests/{digest('image 2')}", expect=(400, 403, 405, 409)),
        )
        time_("DELETE tag", lambda n: call("DELETE", f"/v2/{BIG}/manifests/t{70010 + 10 * n}"))
        time_("DELETE blob", lambda n: call("DELETE", f"/v2/{BIG}/blobs/{digest(f'{self.stamp} blob {n}'.encode())}"))
        time_(
            "DELETE blob that all images have", lambda n: call("DELETE", f"/v2/{BIG}/blobs/{digest('base 1')}", expect=(400, 403, 405, 409))
        )

    def deletion(self):
        ecr, time_, big = self.ecr, self.table.time, {"repositoryName": BIG}
        time_("DeleteRepository, empty", lambda n: ecr.delete_repository(repositoryName=f"new/{self.stamp}-{n}"))
        self.serve.idle("delete-repository")
        time_(f"DeleteRepository of {self.images:,} images, forced", lambda n: ecr.delete_repository(**big, force=True), rounds=1)
        time_("CreateRepository of that name at once", lambda n: ecr.create_repository(**big), rounds=1)
        oci, begin = self.oci, time.perf_counter()
        times = {"GET manifest": [], "POST upload with a new blob": [], "GET /readyz": [], "GET /metrics": []}
        while self.waits("delete-repository"):
            calls = {
                "GET manifest": lambda: oci.call("GET", f"/v2/{BIG}/manifests/none", expect=(404,)),
                "POST upload with a new blob": lambda: oci.blob(BIG, f"{self.stamp} later {time.time()}".encode()),
                "GET /readyz": lambda: self.serve.get("/readyz"),
                "GET /metrics": lambda: self.serve.get("/metrics"),
            }
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1000)
        say(f"the repository's rows were gone after {time.perf_counter() - begin:.1f} s")
        for name, values in times.items():
            self.table.note(f"{name} while its images go", values)


def measure(serve, arguments):
    measurement = Measurement(serve, arguments)
    for part in ("registry", "repositories_", "listings", "layers", "images_", "lifecycle", "v2_reads", "v2_writes", "deletion"):
        if arguments.only in part:
            say(part.strip("_"))
            getattr(measurement, part)()
    return measurement.table.times


def run(kind, arguments):
    with tempfile.TemporaryDirectory(prefix="wharfage-scale-") as folder:
        folder = pathlib.Path(folder)
        database = kind(folder)
        port = arguments.port
        try:
            serve = Serve(folder, port, database.url)
            ecr = Signed(port, Wire())
            ecr.create_repository(repositoryName="seed")
            Oci(port, ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"], Wire()).blob("seed", BASE)
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
    parser.add_argument("--images", type=int, default=99_000, help="the limit of a repository is 100,000")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--port", type=int, default=17_610)
    parser.add_argument("--database", choices=["sqlite", "postgres"])
    parser.add_argument("--only", default="", help="only the parts whose name contains this")
    arguments = parser.parse_args()
    # So that the servers end with this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    kinds = [kind for kind in (Sqlite, Postgres) if arguments.database in (None, kind.__name__.lower())]
    results = {kind.name: run(kind, arguments) for kind in kinds}
    print("| Operation |" + "".join(f" {name}: median | worst |" for name in results))
    print("|---|" + "---:|---:|" * len(results))
    for operation in next(iter(results.values())):
        times = (results[name].get(operation, (0, 0, 0)) for name in results)
        print(f"| {operation} |" + "".join(f" {median:.1f} | {worst:.1f} |" for median, worst, _ in times))


if __name__ == "__main__":
    main()

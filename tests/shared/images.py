"""Small images, made from a word; and their way into a registry through ECR's API or into an OCI layout."""

import dataclasses
import gzip
import hashlib
import io
import json
import tarfile

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


@dataclasses.dataclass(frozen=True)
class Image:
    """A manifest, and the blobs and manifests it refers to."""

    document: dict
    blobs: tuple = ()
    children: tuple = ()

    @property
    def manifest(self):
        return json.dumps(self.document)

    @property
    def media_type(self):
        return self.document["mediaType"]

    @property
    def digest(self):
        return digest(self.manifest.encode())

    @property
    def size(self):
        """What ECR calls the image's size: all blobs, compressed; of an index the largest child's."""
        return sum(map(len, self.blobs)) if not self.children else max(child.size for child in self.children)

    def descriptor(self, **more):
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.manifest), **more}


def blob_descriptor(content, media_type):
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)}


def layer(word):
    """A layer with one file."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("word.txt")
        entry.size = len(word)
        tar.addfile(entry, io.BytesIO(word.encode()))
    return archive.getvalue(), gzip.compress(archive.getvalue(), mtime=0)


def image(word, platform="linux/amd64", **members):
    """An image whose one layer holds `word`; members go into the manifest."""
    plain, packed = layer(word)
    system, architecture = platform.split("/")
    config = json.dumps(
        {"os": system, "architecture": architecture, "config": {}, "rootfs": {"type": "layers", "diff_ids": [digest(plain)]}}
    ).encode()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob_descriptor(config, CONFIG),
        "layers": [blob_descriptor(packed, LAYER)],
        **members,
    }
    return Image(document, (config, packed))


def index(*children, **members):
    """An index; its children are images by their platforms."""
    manifests = []
    for child in children:
        config = json.loads(child.blobs[0])
        manifests.append(child.descriptor(platform={"os": config["os"], "architecture": config["architecture"]}))
    return Image({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests, **members}, children=children)


def multi_platform(word):
    return index(image(word), image(word, "linux/arm64"))


def artifact(word, artifact_type, subject=None, **members):
    """An artifact, such as a signature of `subject`."""
    content = word.encode()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": blob_descriptor(b"{}", EMPTY),
        "layers": [blob_descriptor(content, "application/octet-stream")],
        **members,
    }
    if subject:
        document["subject"] = subject.descriptor()
    return Image(document, (b"{}", content))


def upload(ecr, repository, content):
    """Uploads a layer in one part, unless the repository has it."""
    known = ecr.batch_check_layer_availability(repositoryName=repository, layerDigests=[digest(content)])["layers"]
    if any(found["layerAvailability"] == "AVAILABLE" for found in known):
        return
    upload_id = ecr.initiate_layer_upload(repositoryName=repository)["uploadId"]
    ecr.upload_layer_part(
        repositoryName=repository, uploadId=upload_id, partFirstByte=0, partLastByte=len(content) - 1, layerPartBlob=content
    )
    ecr.complete_layer_upload(repositoryName=repository, uploadId=upload_id, layerDigests=[digest(content)])


def push(ecr, repository, pushed, *tags):
    """Pushes an image with all that it refers to; without tags it stays untagged."""
    for child in pushed.children:
        push(ecr, repository, child)
    for content in pushed.blobs:
        upload(ecr, repository, content)
    for tag in tags or (None,):
        ecr.put_image(
            repositoryName=repository,
            imageManifest=pushed.manifest,
            imageManifestMediaType=pushed.media_type,
            **({"imageTag": tag} if tag else {}),
        )
    return pushed


def write_layout(folder, written):
    """Writes an OCI layout with one entry."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def write(one):
        for content in (one.manifest.encode(), *one.blobs):
            (blobs / digest(content).removeprefix("sha256:")).write_bytes(content)
        for child in one.children:
            write(child)

    write(written)
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [written.descriptor()]}))


def read_layout_digest(folder):
    """The digest of a layout's only entry."""
    (entry,) = json.loads((folder / "index.json").read_text())["manifests"]
    return entry["digest"]

"""Images that run: busybox and a word that tells one from the other."""

import gzip
import io
import json
import pathlib
import platform
import tarfile

from backends import tool
from images import CONFIG, LAYER, MANIFEST, Image, blob_descriptor, digest, write_layout

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]

# The default command of these images: wait until asked to end.
SLEEP = ["/bin/busybox", "sh", "-c", "trap exit TERM INT; while :; do sleep 3600 & wait $!; done"]


def busybox(word, command=SLEEP):
    """An image with busybox's programs below /bin and `word` in /word."""
    program = pathlib.Path(tool("WHARFAGE_TEST_BUSYBOX")).read_bytes()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content, mode in [("bin/busybox", program, 0o755), ("word", word.encode(), 0o644)]:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
        for applet in ("sh", "cat", "sleep", "wget", "nslookup"):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    plain, packed = archive.getvalue(), gzip.compress(archive.getvalue(), compresslevel=1, mtime=0)
    config = json.dumps(
        {
            "os": "linux",
            "architecture": ARCHITECTURE,
            "config": {"Cmd": command, "Env": ["PATH=/bin"], "User": "65532:65532"},
            "rootfs": {"type": "layers", "diff_ids": [digest(plain)]},
        }
    ).encode()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob_descriptor(config, CONFIG),
        "layers": [blob_descriptor(packed, LAYER)],
    }
    return Image(document, (config, packed))


def write_archive(path, image, tag):
    """Writes an OCI archive, as buildah's, with one image of this tag."""
    folder = path.with_suffix(".layout")
    write_layout(folder, image)
    index = json.loads((folder / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (folder / "index.json").write_text(json.dumps(index))
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=".")
    return path

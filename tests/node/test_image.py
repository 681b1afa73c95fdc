"""The contents of the image of deploy/image, and that the program in it runs without other files."""

import hashlib
import json
import pathlib
import platform
import re
import shutil
import subprocess
import tarfile
import tomllib

import pytest
from cryptography import x509

ROOT = pathlib.Path(__file__).parents[2]


def blob(image, descriptor):
    return image / "blobs/sha256" / descriptor["digest"].removeprefix("sha256:")


def manifest_of(image):
    (entry,) = json.loads((image / "index.json").read_text())["manifests"]
    return json.loads(blob(image, entry).read_text())


def digests(image):
    return [one["digest"] for one in json.loads((image / "index.json").read_text())["manifests"]]


def config_of(image):
    return json.loads(blob(image, manifest_of(image)["config"]).read_text())


@pytest.fixture(scope="module")
def files(image):
    """Every file by its path: its tar entry and its content."""
    found = {}
    for layer in manifest_of(image)["layers"]:
        with tarfile.open(blob(image, layer)) as tar:
            for entry in tar:
                content = tar.extractfile(entry).read() if entry.isfile() else None
                found[entry.name.rstrip("/")] = (entry, content)
    return found


def test_it_holds_the_program_its_certificates_and_its_papers_and_nothing_else(files):
    assert sorted(path for path, (entry, _) in files.items() if not entry.isdir()) == [
        "etc/ssl/certs/ca-certificates.crt",
        "usr/bin/wharfage",
        "usr/share/doc/wharfage/LICENSE",
        "usr/share/doc/wharfage/NOTICE",
        "usr/share/sbom/wharfage.cdx.json",
    ]
    writable = {path for path, (entry, _) in files.items() if entry.uid != 0 or entry.mode & 0o022}
    assert writable == {"var/lib/wharfage"}
    assert files["var/lib/wharfage"][0].uid == 65532


def test_it_runs_as_a_numbered_user_that_is_not_root(image):
    config = config_of(image)["config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["/usr/bin/wharfage"]


def test_labels_and_annotations_tell_the_same_of_where_it_is_from(image, files):
    version = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    config = config_of(image)
    labels = config["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.created"] == config["created"].replace(".000000000", "")
    assert labels["dev.wharfage.sbom"].lstrip("/") in files
    assert labels.items() <= manifest_of(image)["annotations"].items()


def test_the_sbom_names_what_the_lock_file_holds(files):
    sbom = json.loads(files["usr/share/sbom/wharfage.cdx.json"][1])
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.5")
    named = {(one["name"], one["version"]) for one in sbom["components"]}
    locked = set(re.findall(r'\[\[package\]\]\nname = "(.+)"\nversion = "(.+)"', (ROOT / "Cargo.lock").read_text()))
    assert named <= locked
    names = {name for name, _ in named}
    assert {"aws-sdk-ecr", "kube", "libsqlite3-sys", "rustls"} <= names
    assert not names & {"proptest", "insta"}, "these are for tests: they aren't in the image"
    assert not re.search(r"/tmp/|/root/|/home/", json.dumps(sbom)), "the builder's folders are nobody's business"


# One of them has a serial number that is no longer allowed, and is trusted still.
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_the_certificates_are_public_authorities_and_not_the_builders(files):
    bundle = files["etc/ssl/certs/ca-certificates.crt"][1].decode()
    named = [one.subject.rfc4514_string() for one in x509.load_pem_x509_certificates(bundle.encode())]
    assert len(named) == len(set(named)) > 50
    for authority in ("CN=ISRG Root X1,", "CN=Amazon Root CA 1,", "CN=DigiCert Global Root G2,"):
        assert [one for one in named if one.startswith(authority)], named
    own = [path for path in pathlib.Path("/usr/local/share/ca-certificates").rglob("*.crt") if path.read_text().strip() in bundle]
    assert not own, "what only this machine trusts is in the image"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """The folder of a second build: the image in `image`, and the other files of a release in `dist`."""
    folder = tmp_path_factory.mktemp("rebuilt")
    build = [ROOT / "deploy/image/build", "--profile", "dev", "--to", f"oci:{folder}/image:again", "--archive", folder / "dist"]
    subprocess.run(build, check=True)
    return folder


def test_building_it_again_gives_the_same_image(image, rebuilt):
    assert digests(rebuilt / "image") == digests(image)


def test_cargo_binstall_finds_the_program_in_the_archive(rebuilt, files):
    manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())
    package = manifest["package"] | {"version": manifest["workspace"]["package"]["version"]}
    binstall = package["metadata"]["binstall"]
    target = f"{platform.machine()}-unknown-linux-musl"
    fields = {"repo": "REPO", "name": package["name"], "version": package["version"], "target": target, "bin": "wharfage", "binary-ext": ""}

    def expanded(template):
        return re.sub(r"\{ ([a-z-]+) \}", lambda found: fields[found[1]], template)

    (archive,) = (rebuilt / "dist").glob("*.tar.gz")
    assert expanded(binstall["pkg-url"]) == f"REPO/releases/download/v{package['version']}/{archive.name}"
    folder = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as tar:
        assert sorted(tar.getnames()) == [f"{folder}/LICENSE", f"{folder}/NOTICE", f"{folder}/wharfage"]
        program = tar.extractfile(expanded(binstall["bin-dir"])).read()
    assert program == files["usr/bin/wharfage"][1]
    assert (rebuilt / f"dist/{folder}.cdx.json").read_bytes() == files["usr/share/sbom/wharfage.cdx.json"][1]


def test_images_of_several_architectures_are_joined_unchanged(image, tmp_path):
    twin = tmp_path / "twin"
    shutil.copytree(image, twin)

    def stored(content, **descriptor):
        data = json.dumps(content).encode()
        digest = hashlib.sha256(data).hexdigest()
        (twin / "blobs/sha256" / digest).write_bytes(data)
        return {**descriptor, "digest": f"sha256:{digest}", "size": len(data)}

    manifest = manifest_of(image)
    config = stored({**config_of(image), "architecture": "riscv64"}, mediaType=manifest["config"]["mediaType"])
    entry = stored({**manifest, "config": config}, mediaType=manifest["mediaType"])
    (twin / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    archives = [tmp_path / "own.tar", tmp_path / "twin.tar"]
    for folder, archive in zip((image, twin), archives, strict=True):
        subprocess.run(["tar", "--create", "--file", archive, "--directory", folder, "."], check=True)
    joined = tmp_path / "joined"
    digest = subprocess.check_output([ROOT / "deploy/image/join", f"oci:{joined}:v1", *archives], text=True).strip()
    assert digests(joined) == [digest]
    manifests = manifest_of(joined)["manifests"]
    assert [one["digest"] for one in manifests] == digests(image) + digests(twin)
    assert [one["platform"]["architecture"] for one in manifests] == [config_of(image)["architecture"], "riscv64"]

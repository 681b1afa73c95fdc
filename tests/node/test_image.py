"""What the image of deploy/image holds, and that what it holds runs by itself."""

import json
import pathlib
import re
import subprocess
import tarfile

import pytest
from cryptography import x509

ROOT = pathlib.Path(__file__).parents[2]


def blob(image, descriptor):
    return image / "blobs/sha256" / descriptor["digest"].removeprefix("sha256:")


def manifest_of(image):
    (entry,) = json.loads((image / "index.json").read_text())["manifests"]
    return json.loads(blob(image, entry).read_text())


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


def test_building_it_again_gives_the_same_image(image, tmp_path):
    rebuilt = tmp_path / "again"
    subprocess.run([ROOT / "deploy/image/build", "--profile", "dev", "--to", f"oci:{rebuilt}:again"], check=True)
    again, before = (json.loads((folder / "index.json").read_text())["manifests"] for folder in (rebuilt, image))
    assert [one["digest"] for one in again] == [one["digest"] for one in before]

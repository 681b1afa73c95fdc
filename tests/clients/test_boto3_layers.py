"""Layers through ECR's API: uploads in parts, checks, downloads."""

import concurrent.futures
import os
import urllib.error
import urllib.request
import uuid

import pytest

import images
from conftest import refused

MIB = 1024 * 1024
PART = 5 * MIB
ABSENT = "sha256:" + "0" * 64


def start(ecr, repository):
    started = ecr.initiate_layer_upload(repositoryName=repository)
    uuid.UUID(started["uploadId"])
    return started["uploadId"]


def part(ecr, repository, upload, first, content, last=None):
    return ecr.upload_layer_part(
        repositoryName=repository,
        uploadId=upload,
        partFirstByte=first,
        partLastByte=first + len(content) - 1 if last is None else last,
        layerPartBlob=content,
    )


def availability(ecr, repository, *digests):
    return ecr.batch_check_layer_availability(repositoryName=repository, layerDigests=list(digests))


# Uploads


def test_a_layer_is_uploaded_in_parts(ecr, repository):
    content = os.urandom(PART + 12_345)
    upload = start(ecr, repository)
    first = part(ecr, repository, upload, 0, content[:PART])
    assert first["lastByteReceived"] == PART - 1
    assert (first["registryId"], first["repositoryName"], first["uploadId"]) == ("123456789012", repository, upload)
    assert part(ecr, repository, upload, PART, content[PART:])["lastByteReceived"] == len(content) - 1
    done = ecr.complete_layer_upload(repositoryName=repository, uploadId=upload, layerDigests=[images.digest(content)])
    assert done["layerDigest"] == images.digest(content)
    (found,) = availability(ecr, repository, images.digest(content))["layers"]
    assert (found["layerAvailability"], found["layerSize"]) == ("AVAILABLE", len(content))


def test_the_part_size_that_is_offered_is_taken(ecr, repository):
    started = ecr.initiate_layer_upload(repositoryName=repository)
    content = os.urandom(started["partSize"])
    assert part(ecr, repository, started["uploadId"], 0, content)["lastByteReceived"] == len(content) - 1


def test_the_largest_part_is_taken_and_a_larger_one_refused(ecr, unchecked, repository):
    largest = bytes(20 * MIB)
    upload = start(ecr, repository)
    assert part(ecr, repository, upload, 0, largest)["lastByteReceived"] == len(largest) - 1
    with refused("InvalidParameterException"):
        part(unchecked, repository, start(ecr, repository), 0, largest + b"x")


def test_a_body_that_no_part_needs_is_refused_and_its_client_is_answered(ecr, unchecked, repository):
    upload = start(ecr, repository)
    with refused("RequestEntityTooLargeException", status=413):
        part(unchecked, repository, upload, 0, bytes(26 * MIB))
    assert part(ecr, repository, upload, 0, b"goes on")["lastByteReceived"] == 6


def test_a_part_out_of_sequence_is_refused_with_the_last_valid_byte(ecr, repository):
    upload = start(ecr, repository)
    part(ecr, repository, upload, 0, bytes(PART))
    with refused("InvalidLayerPartException") as caught:
        part(ecr, repository, upload, PART + 1, b"late")
    response = caught.value.response
    assert response["lastValidByteReceived"] == PART - 1
    assert (response["registryId"], response["repositoryName"]) == ("123456789012", repository)
    assert response["uploadId"] == upload
    part(ecr, repository, upload, PART, b"goes on")


@pytest.mark.parametrize(("first", "last"), [(0, 5), (0, 3), (5, 0)])
def test_a_part_whose_bounds_do_not_fit_its_bytes_is_refused(ecr, repository, first, last):
    with refused("InvalidLayerPartException"):
        part(ecr, repository, start(ecr, repository), first, b"12345", last)


def test_a_part_but_the_last_has_five_mebibytes(ecr, repository):
    upload = start(ecr, repository)
    part(ecr, repository, upload, 0, b"small")
    part(ecr, repository, upload, 5, b"last")
    with refused("LayerPartTooSmallException", "All layer parts except the last part should be at least 5MB"):
        ecr.complete_layer_upload(repositoryName=repository, uploadId=upload, layerDigests=[images.digest(b"smalllast")])


def test_a_layer_under_another_digest_is_refused(ecr, repository):
    upload = start(ecr, repository)
    part(ecr, repository, upload, 0, b"content")
    with refused("InvalidLayerException"):
        ecr.complete_layer_upload(repositoryName=repository, uploadId=upload, layerDigests=[ABSENT])


def test_an_upload_without_parts_is_empty(ecr, repository):
    with refused("EmptyUploadException"):
        ecr.complete_layer_upload(repositoryName=repository, uploadId=start(ecr, repository), layerDigests=[ABSENT])


def test_a_layer_that_is_there_is_refused_a_second_time(ecr, repository):
    content = uuid.uuid4().bytes
    images.upload(ecr, repository, content)
    upload = start(ecr, repository)
    part(ecr, repository, upload, 0, content)
    with refused("LayerAlreadyExistsException"):
        ecr.complete_layer_upload(repositoryName=repository, uploadId=upload, layerDigests=[images.digest(content)])


def test_an_upload_belongs_to_its_repository(ecr, repository):
    upload = start(ecr, repository)
    ecr.create_repository(repositoryName=f"{repository}-other")
    for uploaded in (upload, str(uuid.uuid4())):
        with refused("UploadNotFoundException"):
            part(ecr, f"{repository}-other", uploaded, 0, b"foreign")
        with refused("UploadNotFoundException"):
            ecr.complete_layer_upload(repositoryName=f"{repository}-other", uploadId=uploaded, layerDigests=[ABSENT])


def test_an_upload_id_that_is_no_uuid_is_refused(ecr, repository):
    with refused("InvalidParameterException", "uploadId"):
        part(ecr, repository, "../../etc/passwd", 0, b"x")


def test_one_upload_of_many_at_once_wins(ecr, repository):
    content = os.urandom(100_000)

    def push(_):
        upload = start(ecr, repository)
        part(ecr, repository, upload, 0, content)
        try:
            ecr.complete_layer_upload(repositoryName=repository, uploadId=upload, layerDigests=[images.digest(content)])
        except ecr.exceptions.LayerAlreadyExistsException:
            return "there already"
        return "won"

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(push, range(6)))
    assert outcomes.count("won") == 1


# BatchCheckLayerAvailability


def test_availability_tells_each_digest_apart(ecr, repository):
    images.upload(ecr, repository, b"there")
    answer = availability(ecr, repository, images.digest(b"there"), ABSENT, "not-a-digest")
    found = {entry["layerDigest"]: entry["layerAvailability"] for entry in answer["layers"]}
    assert found.pop(images.digest(b"there")) == "AVAILABLE"
    failed = {entry.get("layerDigest"): entry["failureCode"] for entry in answer["failures"]}
    assert failed.pop("not-a-digest") == "InvalidLayerDigest"
    # ECR's answer for an absent layer isn't documented: one of two.
    assert found == {ABSENT: "UNAVAILABLE"} or failed == {ABSENT: "MissingLayerDigest"}


@pytest.mark.parametrize("count", [0, 101])
def test_one_to_a_hundred_layers_are_checked_at_once(unchecked, repository, count):
    with refused("InvalidParameterException"):
        availability(unchecked, repository, *[ABSENT] * count)


def test_a_layer_is_available_only_in_its_repository(ecr, repository):
    images.upload(ecr, repository, b"mine")
    ecr.create_repository(repositoryName=f"{repository}-other")
    answer = availability(ecr, f"{repository}-other", images.digest(b"mine"))
    assert all(entry["layerAvailability"] == "UNAVAILABLE" for entry in answer["layers"])


# GetDownloadUrlForLayer


def test_a_layer_is_downloaded_from_its_url_without_credentials(ecr, repository):
    image = images.push(ecr, repository, images.image("download"), "v1")
    layer = image.blobs[1]
    answer = ecr.get_download_url_for_layer(repositoryName=repository, layerDigest=images.digest(layer))
    assert answer["layerDigest"] == images.digest(layer)
    with urllib.request.urlopen(answer["downloadUrl"]) as download:
        assert download.read() == layer


def test_a_download_url_cannot_be_turned_to_another_layer(ecr, repository):
    image = images.push(ecr, repository, images.image("tampered"), "v1")
    config, layer = (images.digest(content) for content in image.blobs)
    url = ecr.get_download_url_for_layer(repositoryName=repository, layerDigest=layer)["downloadUrl"]
    other = url.replace(layer, config).replace(layer.replace(":", "%3A"), config.replace(":", "%3A"))
    if other != url:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(other)
        assert caught.value.code in (401, 403)


def test_a_layer_of_no_image_is_inaccessible(ecr, repository):
    images.upload(ecr, repository, b"orphan")
    with refused("LayerInaccessibleException"):
        ecr.get_download_url_for_layer(repositoryName=repository, layerDigest=images.digest(b"orphan"))


def test_a_layer_that_is_not_there_has_no_url(ecr, repository):
    with refused("LayersNotFoundException"):
        ecr.get_download_url_for_layer(repositoryName=repository, layerDigest=ABSENT)


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("initiate_layer_upload", {}),
        ("upload_layer_part", {"uploadId": str(uuid.uuid4()), "partFirstByte": 0, "partLastByte": 0, "layerPartBlob": b"x"}),
        ("complete_layer_upload", {"uploadId": str(uuid.uuid4()), "layerDigests": [ABSENT]}),
        ("batch_check_layer_availability", {"layerDigests": [ABSENT]}),
        ("get_download_url_for_layer", {"layerDigest": ABSENT}),
    ],
)
def test_layers_need_a_repository(ecr, operation, parameters):
    with refused("RepositoryNotFoundException", "'not/there'"):
        getattr(ecr, operation)(repositoryName="not/there", **parameters)

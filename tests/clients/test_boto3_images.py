"""Images through ECR's API: put, read, list, describe, delete, archive; and who refers to them."""

import datetime
import json
import uuid

import pytest

import images
from conftest import pages, refused

ABSENT = "sha256:" + "0" * 64


def described(ecr, repository, **parameters):
    found = ecr.describe_images(repositoryName=repository, **parameters)["imageDetails"]
    return {detail["imageDigest"]: detail for detail in found}


def listed(ecr, repository, **parameters):
    """What ListImages tells, as a set of (digest, tag)."""
    ids = ecr.list_images(repositoryName=repository, **parameters)["imageIds"]
    return {(entry["imageDigest"], entry.get("imageTag")) for entry in ids}


def put(ecr, repository, image, **parameters):
    return ecr.put_image(repositoryName=repository, imageManifest=image.manifest, **parameters)["image"]


# PutImage


def test_an_image_is_put_and_returned(ecr, repository):
    image = images.image("put")
    for blob in image.blobs:
        images.upload(ecr, repository, blob)
    assert put(ecr, repository, image, imageTag="v1", imageDigest=image.digest) == {
        "registryId": "123456789012",
        "repositoryName": repository,
        "imageId": {"imageDigest": image.digest, "imageTag": "v1"},
        "imageManifest": image.manifest,
        "imageManifestMediaType": images.MANIFEST,
    }


def test_an_image_whose_layers_are_missing_is_refused(ecr, repository):
    image = images.image("no layers")
    layer = images.digest(image.blobs[1])
    with refused("LayersNotFoundException", layer):
        put(ecr, repository, image, imageTag="v1")
    assert listed(ecr, repository) == set()


def test_an_index_whose_children_are_missing_is_refused(ecr, repository):
    index = images.multi_platform("no children")
    with refused("ReferencedImagesNotFoundException", index.children[0].digest):
        put(ecr, repository, index, imageTag="v1")


def test_an_image_under_another_digest_is_refused(ecr, repository):
    image = images.push(ecr, repository, images.image("digest"), "v1")
    with refused("ImageDigestDoesNotMatchException"):
        put(ecr, repository, image, imageTag="v2", imageDigest=ABSENT)


@pytest.mark.parametrize(
    ("manifest", "media_type"),
    [
        ("{", images.MANIFEST),
        ("[]", images.MANIFEST),
        ("{}", None),
        ('{"schemaVersion":2}', images.MANIFEST),
        (json.dumps(images.image("x").document), images.INDEX),
        (json.dumps({"schemaVersion": 2, "mediaType": "text/plain"}), None),
    ],
)
def test_a_manifest_that_is_none_is_refused(ecr, repository, manifest, media_type):
    with refused("InvalidParameterException"):
        ecr.put_image(
            repositoryName=repository,
            imageManifest=manifest,
            **({"imageManifestMediaType": media_type} if media_type else {}),
        )


def test_the_bytes_of_a_manifest_are_kept_as_they_came(ecr, repository):
    image = images.push(ecr, repository, images.image("bytes"))
    spaced = json.dumps(image.document, indent=7) + "\n"
    answer = ecr.put_image(repositoryName=repository, imageManifest=spaced, imageTag="spaced")["image"]
    assert answer["imageId"]["imageDigest"] == images.digest(spaced.encode())
    (read,) = ecr.batch_get_image(repositoryName=repository, imageIds=[{"imageTag": "spaced"}])["images"]
    assert read["imageManifest"] == spaced


@pytest.mark.parametrize("tag", ["-v1", ".v1", "a b", "a/b", "a:b", "ü", "t" * 301])
def test_a_tag_outside_the_grammar_is_refused(unchecked, ecr, repository, tag):
    image = images.push(ecr, repository, images.image("tags"))
    with refused("InvalidParameterException", "imageTag"):
        put(unchecked, repository, image, imageTag=tag)


def test_the_same_image_is_refused_a_second_time(ecr, repository):
    image = images.push(ecr, repository, images.image("twice"), "v1")
    message = (
        f"Image with digest '{image.digest}' and tag 'v1' already exists in the repository "
        f"with name '{repository}' in registry with id '123456789012'"
    )
    with refused("ImageAlreadyExistsException", message):
        put(ecr, repository, image, imageTag="v1")
    with refused("ImageAlreadyExistsException"):
        put(ecr, repository, image)


def test_a_mutable_tag_moves_and_leaves_the_old_image_untagged(ecr, repository):
    old = images.push(ecr, repository, images.image("old"), "v1")
    new = images.push(ecr, repository, images.image("new"), "v1", "latest")
    assert listed(ecr, repository) == {(new.digest, "v1"), (new.digest, "latest"), (old.digest, None)}


def test_an_immutable_tag_stays_until_it_is_deleted(ecr, repository):
    ecr.put_image_tag_mutability(repositoryName=repository, imageTagMutability="IMMUTABLE")
    old = images.push(ecr, repository, images.image("old"), "v1", "keep")
    new = images.push(ecr, repository, images.image("new"))
    message = (
        f"The image tag 'v1' already exists in the '{repository}' repository and cannot be overwritten because the repository is immutable."
    )
    with refused("ImageTagAlreadyExistsException", message):
        put(ecr, repository, new, imageTag="v1")
    ecr.batch_delete_image(repositoryName=repository, imageIds=[{"imageTag": "v1"}])
    put(ecr, repository, new, imageTag="v1")
    assert listed(ecr, repository) == {(old.digest, "keep"), (new.digest, "v1")}


@pytest.mark.parametrize(
    ("mutability", "moves", "stays"),
    [("IMMUTABLE_WITH_EXCLUSION", "dev-1", "v1"), ("MUTABLE_WITH_EXCLUSION", "v1", "dev-1")],
)
def test_an_exclusion_filter_turns_the_setting_for_the_tags_that_it_matches(ecr, repository, mutability, moves, stays):
    ecr.put_image_tag_mutability(
        repositoryName=repository,
        imageTagMutability=mutability,
        imageTagMutabilityExclusionFilters=[{"filterType": "WILDCARD", "filter": "dev-*"}],
    )
    images.push(ecr, repository, images.image("old"), moves, stays)
    new = images.push(ecr, repository, images.image("new"))
    assert put(ecr, repository, new, imageTag=moves)["imageId"]["imageDigest"] == new.digest
    with refused("ImageTagAlreadyExistsException", stays):
        put(ecr, repository, new, imageTag=stays)


def test_a_manifest_of_more_than_four_mebibytes_is_refused(unchecked, ecr, repository):
    image = images.push(ecr, repository, images.image("large"))
    large = json.dumps({**image.document, "annotations": {"padding": "x" * 4_194_304}})
    with refused("InvalidParameterException", "imageManifest"):
        unchecked.put_image(repositoryName=repository, imageManifest=large, imageTag="large")


# BatchGetImage


def test_images_are_read_by_tag_by_digest_and_by_both(ecr, repository):
    image = images.push(ecr, repository, images.image("read"), "v1")
    both = {"imageTag": "v1", "imageDigest": image.digest}
    for asked, expected in ({"imageTag": "v1"}, both), ({"imageDigest": image.digest}, None), (both, both):
        answer = ecr.batch_get_image(repositoryName=repository, imageIds=[asked])
        (read,) = answer["images"]
        assert read["imageId"] == (expected or {"imageDigest": image.digest})
        assert (read["imageManifest"], read["imageManifestMediaType"]) == (image.manifest, images.MANIFEST)
        assert answer["failures"] == []


def test_each_image_that_is_not_read_says_why(ecr, repository):
    image = images.push(ecr, repository, images.image("one"), "v1")
    other = images.push(ecr, repository, images.image("two"), "v2")
    asked = [
        {"imageTag": "v1"},
        {"imageTag": "never"},
        {"imageDigest": ABSENT},
        {"imageDigest": "sha256"},
        {"imageTag": "v1", "imageDigest": other.digest},
        {},
    ]
    answer = ecr.batch_get_image(repositoryName=repository, imageIds=asked)
    assert [read["imageId"]["imageDigest"] for read in answer["images"]] == [image.digest]
    codes = {json.dumps(failure["imageId"], sort_keys=True): failure["failureCode"] for failure in answer["failures"]}
    assert codes == {
        json.dumps({"imageTag": "never"}): "ImageNotFound",
        json.dumps({"imageDigest": ABSENT}): "ImageNotFound",
        json.dumps({"imageDigest": "sha256"}): "InvalidImageDigest",
        json.dumps({"imageDigest": other.digest, "imageTag": "v1"}): "ImageTagDoesNotMatchDigest",
        json.dumps({}): "MissingDigestAndTag",
    }
    assert all(failure["failureReason"] for failure in answer["failures"])


@pytest.mark.parametrize("count", [0, 101])
def test_one_to_a_hundred_images_are_read_at_once(unchecked, repository, count):
    with refused("InvalidParameterException", "imageIds"):
        unchecked.batch_get_image(repositoryName=repository, imageIds=[{"imageTag": "v1"}] * count)


# ListImages


def test_every_tag_and_every_untagged_image_is_listed(ecr, repository):
    index = images.push(ecr, repository, images.multi_platform("listed"), "v1", "v2")
    first, second = index.children
    everything = {(index.digest, "v1"), (index.digest, "v2"), (first.digest, None), (second.digest, None)}
    assert listed(ecr, repository) == everything
    assert listed(ecr, repository, filter={"tagStatus": "ANY"}) == everything
    assert listed(ecr, repository, filter={"tagStatus": "TAGGED"}) == {(index.digest, "v1"), (index.digest, "v2")}
    assert listed(ecr, repository, filter={"tagStatus": "UNTAGGED"}) == {(first.digest, None), (second.digest, None)}


def test_pages_of_images_tell_each_once(ecr, repository):
    for number in range(5):
        images.push(ecr, repository, images.image(f"page {number}"), f"a-{number}", f"b-{number}")
    images.push(ecr, repository, images.image("untagged"))
    found = pages(ecr.list_images, "imageIds", repositoryName=repository, maxResults=4)
    assert all(len(page) <= 4 for page in found)
    ids = [(entry["imageDigest"], entry.get("imageTag")) for page in found for entry in page]
    assert len(ids) == len(set(ids)) == 11
    assert set(ids) == listed(ecr, repository)


def test_a_token_of_another_repository_is_refused(ecr, repository):
    for number in range(2):
        images.push(ecr, repository, images.image(f"{number}"), f"v{number}")
    token = ecr.list_images(repositoryName=repository, maxResults=1)["nextToken"]
    ecr.create_repository(repositoryName=f"{repository}-other")
    with refused("InvalidParameterException"):
        ecr.list_images(repositoryName=f"{repository}-other", nextToken=token)
    with refused("InvalidParameterException"):
        ecr.list_images(repositoryName=repository, nextToken=token, filter={"tagStatus": "UNTAGGED"})


# DescribeImages


def test_an_image_is_described(ecr, repository):
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=5)
    image = images.push(ecr, repository, images.image("described"), "v1", "v2")
    detail = described(ecr, repository)[image.digest]
    assert before <= detail.pop("imagePushedAt") <= datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=5)
    detail["imageTags"].sort()
    assert detail == {
        "registryId": "123456789012",
        "repositoryName": repository,
        "imageDigest": image.digest,
        "imageTags": ["v1", "v2"],
        "imageSizeInBytes": image.size,
        "imageManifestMediaType": images.MANIFEST,
        "artifactMediaType": images.CONFIG,
        "imageStatus": "ACTIVE",
    }


def test_the_size_of_an_index_is_its_largest_childs(ecr, repository):
    small, large = images.image("s"), images.image("large" * 1000, "linux/arm64")
    index = images.push(ecr, repository, images.index(small, large), "v1")
    details = described(ecr, repository)
    assert details[index.digest]["imageSizeInBytes"] == details[large.digest]["imageSizeInBytes"] == large.size
    assert "imageTags" not in details[small.digest]


def test_pages_of_descriptions_tell_each_once(ecr, repository):
    pushed = {images.push(ecr, repository, images.image(f"{number}"), f"v{number}").digest for number in range(5)}
    found = pages(ecr.describe_images, "imageDetails", repositoryName=repository, maxResults=2)
    digests = [detail["imageDigest"] for page in found for detail in page]
    assert len(digests) == 5 and set(digests) == pushed
    paginator = ecr.get_paginator("describe_images").paginate(repositoryName=repository, filter={"tagStatus": "TAGGED"})
    assert {detail["imageDigest"] for page in paginator for detail in page["imageDetails"]} == pushed


def test_one_missing_image_fails_the_whole_description(ecr, repository):
    images.push(ecr, repository, images.image("there"), "v1")
    message = (
        r"The image with imageId \{imageDigest:'null', imageTag:'v2'\} does not exist within the repository "
        f"with name '{repository}' in the registry with id '123456789012'"
    )
    with refused("ImageNotFoundException", message):
        described(ecr, repository, imageIds=[{"imageTag": "v1"}, {"imageTag": "v2"}])


def test_images_and_pages_do_not_go_together(ecr, repository):
    images.push(ecr, repository, images.image("there"), "v1")
    with refused("InvalidParameterException"):
        described(ecr, repository, imageIds=[{"imageTag": "v1"}], maxResults=1)


def test_a_pull_is_recorded(ecr, repository):
    image = images.push(ecr, repository, images.image("pulled"), "v1")
    assert "lastRecordedPullTime" not in described(ecr, repository)[image.digest]
    ecr.batch_get_image(repositoryName=repository, imageIds=[{"imageTag": "v1"}])
    detail = described(ecr, repository, imageIds=[{"imageTag": "v1"}])[image.digest]
    assert detail["lastRecordedPullTime"] >= detail["imagePushedAt"]


# BatchDeleteImage


def test_an_image_goes_with_its_last_tag(ecr, repository):
    image = images.push(ecr, repository, images.image("tags"), "v1", "v2")
    answer = ecr.batch_delete_image(repositoryName=repository, imageIds=[{"imageTag": "v1"}])
    assert answer["imageIds"] == [{"imageDigest": image.digest, "imageTag": "v1"}]
    assert listed(ecr, repository) == {(image.digest, "v2")}
    ecr.batch_delete_image(repositoryName=repository, imageIds=[{"imageTag": "v2"}])
    assert listed(ecr, repository) == set()


def test_an_image_deleted_by_digest_takes_all_its_tags_along(ecr, repository):
    image = images.push(ecr, repository, images.image("digest"), "v1", "v2")
    answer = ecr.batch_delete_image(repositoryName=repository, imageIds=[{"imageDigest": image.digest}])
    assert sorted(entry["imageTag"] for entry in answer["imageIds"]) == ["v1", "v2"]
    assert {entry["imageDigest"] for entry in answer["imageIds"]} == {image.digest}
    assert answer["failures"] == [] and listed(ecr, repository) == set()


def test_an_untagged_image_is_deleted_by_digest(ecr, repository):
    image = images.push(ecr, repository, images.image("untagged"))
    answer = ecr.batch_delete_image(repositoryName=repository, imageIds=[{"imageDigest": image.digest}])
    assert answer["imageIds"] == [{"imageDigest": image.digest}]


def test_what_an_index_needs_is_deleted_after_it(ecr, repository):
    index = images.push(ecr, repository, images.multi_platform("index"), "v1")
    child = {"imageDigest": index.children[0].digest}
    answer = ecr.batch_delete_image(repositoryName=repository, imageIds=[child])
    (failure,) = answer["failures"]
    assert failure["failureCode"] == "ImageReferencedByManifestList"
    assert failure["failureReason"] == f"Requested image referenced by manifest list: [{index.digest}]"
    assert answer["imageIds"] == []
    ecr.batch_delete_image(repositoryName=repository, imageIds=[{"imageTag": "v1"}])
    assert ecr.batch_delete_image(repositoryName=repository, imageIds=[child])["imageIds"] == [child]


def test_the_last_tag_of_what_an_index_needs_stays(ecr, repository):
    index = images.push(ecr, repository, images.multi_platform("index"), "v1")
    child = index.children[0]
    put(ecr, repository, child, imageTag="amd64")
    answer = ecr.batch_delete_image(repositoryName=repository, imageIds=[{"imageTag": "amd64"}])
    assert [failure["failureCode"] for failure in answer["failures"]] == ["ImageReferencedByManifestList"]
    assert (child.digest, "amd64") in listed(ecr, repository)


def test_each_image_that_is_not_deleted_says_why(ecr, repository):
    image = images.push(ecr, repository, images.image("one"), "v1")
    answer = ecr.batch_delete_image(
        repositoryName=repository,
        imageIds=[{"imageTag": "never"}, {"imageDigest": ABSENT}, {"imageTag": "v1", "imageDigest": ABSENT}, {}],
    )
    codes = sorted(failure["failureCode"] for failure in answer["failures"])
    assert codes == ["ImageNotFound", "ImageNotFound", "ImageTagDoesNotMatchDigest", "MissingDigestAndTag"]
    assert answer["imageIds"] == [] and listed(ecr, repository) == {(image.digest, "v1")}


# ListImageReferrers


def test_referrers_of_an_image_are_listed(ecr, repository):
    subject = images.push(ecr, repository, images.image("subject"), "v1")
    signature = images.artifact("signature", "application/vnd.example.signature", subject, annotations={"by": "me"})
    images.push(ecr, repository, signature)
    answer = ecr.list_image_referrers(repositoryName=repository, subjectId={"imageDigest": subject.digest})
    assert answer["referrers"] == [
        {
            "digest": signature.digest,
            "mediaType": images.MANIFEST,
            "artifactType": "application/vnd.example.signature",
            "size": len(signature.manifest),
            "annotations": {"by": "me"},
            "artifactStatus": "ACTIVE",
        }
    ]
    detail = described(ecr, repository)[signature.digest]
    assert detail["subjectManifestDigest"] == subject.digest
    assert detail["artifactMediaType"] == "application/vnd.example.signature"


def test_referrers_are_filtered_by_their_type_and_paged(ecr, repository):
    subject = images.push(ecr, repository, images.image("subject"), "v1")
    pushed = {}
    for kind in ("application/a", "application/b", "application/c"):
        for number in range(2):
            artifact = images.push(ecr, repository, images.artifact(f"{kind} {number}", kind, subject))
            pushed.setdefault(kind, set()).add(artifact.digest)
    asked = {"repositoryName": repository, "subjectId": {"imageDigest": subject.digest}}
    answer = ecr.list_image_referrers(**asked, filter={"artifactTypes": ["application/a", "application/c"]})
    assert {entry["digest"] for entry in answer["referrers"]} == pushed["application/a"] | pushed["application/c"]
    found = pages(ecr.list_image_referrers, "referrers", **asked, maxResults=4)
    assert [len(page) for page in found] == [4, 2]
    assert {entry["digest"] for page in found for entry in page} == set().union(*pushed.values())


def test_an_unknown_subject_has_no_referrers(ecr, repository):
    answer = ecr.list_image_referrers(repositoryName=repository, subjectId={"imageDigest": ABSENT})
    assert answer["referrers"] == [] and "nextToken" not in answer


@pytest.mark.parametrize(
    "parameters",
    [
        {"subjectId": {"imageDigest": "not-a-digest"}},
        {"subjectId": {"imageDigest": ABSENT}, "maxResults": 51},
        {"subjectId": {"imageDigest": ABSENT}, "filter": {"artifactTypes": ["a"] * 6}},
        {"subjectId": {"imageDigest": ABSENT}, "filter": {"artifactStatus": "GONE"}},
        {"subjectId": {"imageDigest": ABSENT}, "nextToken": "nobody's"},
    ],
    ids=str,
)
def test_a_wrong_question_for_referrers_is_refused(unchecked, repository, parameters):
    with refused("InvalidParameterException"):
        unchecked.list_image_referrers(repositoryName=repository, **parameters)


# UpdateImageStorageClass


def test_an_archived_image_is_kept_out_of_sight_until_it_is_restored(ecr, repository):
    image = images.push(ecr, repository, images.image("archived"), "v1")
    archived = ecr.update_image_storage_class(repositoryName=repository, imageId={"imageTag": "v1"}, targetStorageClass="ARCHIVE")
    assert archived["imageStatus"] == "ARCHIVED"
    assert archived["imageId"]["imageDigest"] == image.digest
    assert listed(ecr, repository) == set() and described(ecr, repository) == {}
    assert listed(ecr, repository, filter={"imageStatus": "ARCHIVED"}) == {(image.digest, "v1")}
    detail = described(ecr, repository, filter={"imageStatus": "ANY"})[image.digest]
    assert detail["imageStatus"] == "ARCHIVED" and detail["lastArchivedAt"] >= detail["imagePushedAt"]
    answer = ecr.batch_get_image(repositoryName=repository, imageIds=[{"imageTag": "v1"}])
    assert answer["images"] == [] and len(answer["failures"]) == 1
    layer = images.digest(image.blobs[1])
    (found,) = ecr.batch_check_layer_availability(repositoryName=repository, layerDigests=[layer])["layers"]
    assert found["layerAvailability"] == "ARCHIVED"

    restored = ecr.update_image_storage_class(
        repositoryName=repository, imageId={"imageDigest": image.digest}, targetStorageClass="STANDARD"
    )
    assert restored["imageStatus"] in ("ACTIVATING", "ACTIVE")


def test_a_storage_class_that_an_image_has_is_refused(ecr, repository):
    images.push(ecr, repository, images.image("standard"), "v1")
    with refused("ImageStorageClassUpdateNotSupportedException"):
        ecr.update_image_storage_class(repositoryName=repository, imageId={"imageTag": "v1"}, targetStorageClass="STANDARD")


def test_what_an_index_needs_is_not_archived_alone(ecr, repository):
    index = images.push(ecr, repository, images.multi_platform("index"), "v1")
    child = {"imageDigest": index.children[0].digest}
    with refused("ImageStorageClassUpdateNotSupportedException"):
        ecr.update_image_storage_class(repositoryName=repository, imageId=child, targetStorageClass="ARCHIVE")


def test_an_image_that_is_not_there_is_not_archived(ecr, unchecked, repository):
    with refused("ImageNotFoundException"):
        ecr.update_image_storage_class(repositoryName=repository, imageId={"imageTag": "v1"}, targetStorageClass="ARCHIVE")
    with refused("InvalidParameterException"):
        unchecked.update_image_storage_class(repositoryName=repository, imageId={"imageTag": "v1"}, targetStorageClass="COLD")


# All of them


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("put_image", {"imageManifest": images.image("x").manifest}),
        ("batch_get_image", {"imageIds": [{"imageTag": "v1"}]}),
        ("batch_delete_image", {"imageIds": [{"imageTag": "v1"}]}),
        ("list_images", {}),
        ("describe_images", {}),
        ("list_image_referrers", {"subjectId": {"imageDigest": ABSENT}}),
        ("update_image_storage_class", {"imageId": {"imageTag": "v1"}, "targetStorageClass": "ARCHIVE"}),
    ],
)
def test_images_need_a_repository(ecr, operation, parameters):
    name = f"not/there-{uuid.uuid4().hex}"
    message = f"The repository with name '{name}' does not exist in the registry with id '123456789012'"
    with refused("RepositoryNotFoundException", message):
        getattr(ecr, operation)(repositoryName=name, **parameters)

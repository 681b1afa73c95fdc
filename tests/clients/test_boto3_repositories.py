"""Repositories and their resource tags, as ECR's API has them."""

import datetime
import uuid

import pytest

import images
from conftest import pages, refused

ARN = "arn:aws:ecr:local-1:123456789012:repository/"
MISSING = "The repository with name '{0}' does not exist in the registry with id '123456789012'"


def describe(ecr, name):
    (found,) = ecr.describe_repositories(repositoryNames=[name])["repositories"]
    return found


# CreateRepository


def test_a_repository_is_created_with_ecrs_defaults(ecr, server, repository_name):
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=5)
    created = ecr.create_repository(repositoryName=repository_name)["repository"]
    assert before <= created.pop("createdAt") <= datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=5)
    assert created == {
        "repositoryArn": ARN + repository_name,
        "registryId": "123456789012",
        "repositoryName": repository_name,
        "repositoryUri": f"{server.address}/{repository_name}",
        "imageTagMutability": "MUTABLE",
        "imageScanningConfiguration": {"scanOnPush": False},
        "encryptionConfiguration": {"encryptionType": "AES256"},
    }


def test_a_repository_keeps_every_setting_that_it_is_created_with(ecr, repository_name):
    settings = {
        "imageTagMutability": "IMMUTABLE_WITH_EXCLUSION",
        "imageTagMutabilityExclusionFilters": [{"filterType": "WILDCARD", "filter": "dev-*"}],
        "imageScanningConfiguration": {"scanOnPush": True},
        "encryptionConfiguration": {"encryptionType": "AES256"},
    }
    created = ecr.create_repository(repositoryName=repository_name, tags=[{"Key": "team", "Value": "a"}], **settings)
    found = describe(ecr, repository_name)
    assert found == created["repository"]
    assert {name: found[name] for name in settings} == settings
    assert ecr.list_tags_for_resource(resourceArn=found["repositoryArn"])["tags"] == [{"Key": "team", "Value": "a"}]


def test_a_name_is_taken_once(ecr, repository):
    message = f"The repository with name '{repository}' already exists in the registry with id '123456789012'"
    with refused("RepositoryAlreadyExistsException", message):
        ecr.create_repository(repositoryName=repository)


@pytest.mark.parametrize("name", ["a", "A/b", "a//b", "/a", "a/", "a..b", "a b", "../etc", "x" * 257, "ä" * 3])
def test_a_name_outside_the_grammar_is_refused(unchecked, name):
    with refused("InvalidParameterException", "Invalid parameter at 'repositoryName' failed to satisfy constraint"):
        unchecked.create_repository(repositoryName=name)


def test_kms_is_refused_until_there_are_keys(ecr, repository_name):
    with refused("KmsException"):
        ecr.create_repository(repositoryName=repository_name, encryptionConfiguration={"encryptionType": "KMS"})
    with refused("RepositoryNotFoundException"):
        ecr.describe_repositories(repositoryNames=[repository_name])


@pytest.mark.parametrize(
    "settings",
    [
        {"imageTagMutability": "SOMETIMES"},
        {"imageTagMutability": "IMMUTABLE_WITH_EXCLUSION"},
        {"imageTagMutability": "MUTABLE", "imageTagMutabilityExclusionFilters": [{"filterType": "WILDCARD", "filter": "a"}]},
        {"imageTagMutabilityExclusionFilters": [{"filterType": "WILDCARD", "filter": "a"}]},
        {
            "imageTagMutability": "MUTABLE_WITH_EXCLUSION",
            "imageTagMutabilityExclusionFilters": [{"filterType": "WILDCARD", "filter": f"{n}"} for n in range(6)],
        },
        {
            "imageTagMutability": "MUTABLE_WITH_EXCLUSION",
            "imageTagMutabilityExclusionFilters": [{"filterType": "WILDCARD", "filter": "a/b"}],
        },
        {"encryptionConfiguration": {"encryptionType": "ROT13"}},
        {"registryId": "12345"},
    ],
    ids=str,
)
def test_a_setting_that_does_not_fit_is_refused(unchecked, repository_name, settings):
    with refused("InvalidParameterException"):
        unchecked.create_repository(repositoryName=repository_name, **settings)


def test_more_than_fifty_tags_are_refused(ecr, repository_name):
    tags = [{"Key": f"key-{n}", "Value": ""} for n in range(51)]
    with refused("TooManyTagsException"):
        ecr.create_repository(repositoryName=repository_name, tags=tags)


@pytest.mark.parametrize("tag", [{"Key": "k" * 129, "Value": "v"}, {"Key": "k", "Value": "v" * 257}, {"Key": "", "Value": "v"}])
def test_a_tag_out_of_bounds_is_refused(unchecked, repository_name, tag):
    with refused("InvalidTagParameterException"):
        unchecked.create_repository(repositoryName=repository_name, tags=[tag])


# DescribeRepositories


def test_pages_of_repositories_tell_each_once(ecr):
    prefix = f"paged/{uuid.uuid4().hex}"
    made = {f"{prefix}/{n}" for n in range(7)}
    for name in made:
        ecr.create_repository(repositoryName=name)
    found = pages(ecr.describe_repositories, "repositories", maxResults=3)
    assert all(len(page) <= 3 for page in found)
    names = [repository["repositoryName"] for page in found for repository in page]
    assert len(names) == len(set(names))
    assert made <= set(names)
    paginator = ecr.get_paginator("describe_repositories").paginate(PaginationConfig={"PageSize": 2})
    assert [repository["repositoryName"] for page in paginator for repository in page["repositories"]] == names


def test_one_missing_name_fails_the_whole_listing(ecr, repository):
    with refused("RepositoryNotFoundException", MISSING.format("not/there")):
        ecr.describe_repositories(repositoryNames=[repository, "not/there"])


@pytest.mark.parametrize("size", [0, 1001])
def test_a_page_size_out_of_bounds_is_refused(unchecked, size):
    with refused("InvalidParameterException", "'maxResults' failed to satisfy constraint"):
        unchecked.describe_repositories(maxResults=size)


def test_names_and_pages_do_not_go_together(ecr, repository):
    with refused("InvalidParameterException"):
        ecr.describe_repositories(repositoryNames=[repository], maxResults=5)


def test_a_token_of_nobodys_is_refused(ecr, repository):
    with refused("InvalidParameterException"):
        ecr.describe_repositories(nextToken="bm90IGEgdG9rZW4=")


def test_a_token_of_another_operation_is_refused(ecr, repository):
    for tag in ("a", "b"):
        images.push(ecr, repository, images.image(tag), tag)
    token = ecr.list_images(repositoryName=repository, maxResults=1)["nextToken"]
    with refused("InvalidParameterException"):
        ecr.describe_repositories(nextToken=token)


# DeleteRepository


def test_an_empty_repository_is_deleted(ecr, repository):
    described = describe(ecr, repository)
    assert ecr.delete_repository(repositoryName=repository)["repository"]["repositoryArn"] == described["repositoryArn"]
    with refused("RepositoryNotFoundException", MISSING.format(repository)):
        ecr.delete_repository(repositoryName=repository)


def test_a_repository_with_images_is_deleted_only_by_force(ecr, repository):
    images.push(ecr, repository, images.multi_platform("full"), "v1")
    message = (
        f"The repository with name '{repository}' in registry with id '123456789012' cannot be deleted because it still contains images"
    )
    with refused("RepositoryNotEmptyException", message):
        ecr.delete_repository(repositoryName=repository)
    ecr.delete_repository(repositoryName=repository, force=True)
    ecr.create_repository(repositoryName=repository)
    assert ecr.list_images(repositoryName=repository)["imageIds"] == []


# PutImageTagMutability, PutImageScanningConfiguration


def test_tag_mutability_is_changed_with_its_filters(ecr, repository):
    filters = [{"filterType": "WILDCARD", "filter": "v*"}, {"filterType": "WILDCARD", "filter": "stable"}]
    put = ecr.put_image_tag_mutability(
        repositoryName=repository,
        imageTagMutability="MUTABLE_WITH_EXCLUSION",
        imageTagMutabilityExclusionFilters=filters,
    )
    assert put["registryId"] == "123456789012" and put["repositoryName"] == repository
    assert put["imageTagMutability"] == "MUTABLE_WITH_EXCLUSION" and put["imageTagMutabilityExclusionFilters"] == filters
    assert describe(ecr, repository)["imageTagMutabilityExclusionFilters"] == filters
    ecr.put_image_tag_mutability(repositoryName=repository, imageTagMutability="IMMUTABLE")
    found = describe(ecr, repository)
    assert found["imageTagMutability"] == "IMMUTABLE" and "imageTagMutabilityExclusionFilters" not in found


def test_scan_on_push_is_stored(ecr, repository):
    put = ecr.put_image_scanning_configuration(repositoryName=repository, imageScanningConfiguration={"scanOnPush": True})
    assert put["imageScanningConfiguration"] == {"scanOnPush": True}
    assert describe(ecr, repository)["imageScanningConfiguration"] == {"scanOnPush": True}


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("put_image_tag_mutability", {"imageTagMutability": "IMMUTABLE"}),
        ("put_image_scanning_configuration", {"imageScanningConfiguration": {"scanOnPush": True}}),
    ],
)
def test_settings_need_a_repository(ecr, operation, parameters):
    with refused("RepositoryNotFoundException", MISSING.format("not/there")):
        getattr(ecr, operation)(repositoryName="not/there", **parameters)


# TagResource, UntagResource, ListTagsForResource


def test_resource_tags_are_merged_listed_and_removed(ecr, repository):
    arn = ARN + repository

    def listed():
        return {tag["Key"]: tag["Value"] for tag in ecr.list_tags_for_resource(resourceArn=arn)["tags"]}

    assert listed() == {}
    ecr.tag_resource(resourceArn=arn, tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
    ecr.tag_resource(resourceArn=arn, tags=[{"Key": "b", "Value": "3"}, {"Key": "Größe", "Value": ""}])
    assert listed() == {"a": "1", "b": "3", "Größe": ""}
    ecr.untag_resource(resourceArn=arn, tagKeys=["a", "never-there"])
    assert listed() == {"b": "3", "Größe": ""}


def test_the_fifty_first_tag_is_refused_and_changes_nothing(ecr, repository):
    arn = ARN + repository
    ecr.tag_resource(resourceArn=arn, tags=[{"Key": f"key-{n}", "Value": ""} for n in range(50)])
    with refused("TooManyTagsException"):
        ecr.tag_resource(resourceArn=arn, tags=[{"Key": "key-0", "Value": "changed"}, {"Key": "one-more", "Value": ""}])
    tags = ecr.list_tags_for_resource(resourceArn=arn)["tags"]
    assert len(tags) == 50 and {"Key": "key-0", "Value": ""} in tags


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("tag_resource", {"tags": [{"Key": "a", "Value": "b"}]}),
        ("untag_resource", {"tagKeys": ["a"]}),
        ("list_tags_for_resource", {}),
    ],
)
def test_resource_tags_need_the_arn_of_a_repository(ecr, operation, parameters):
    with refused("RepositoryNotFoundException", MISSING.format("not/there")):
        getattr(ecr, operation)(resourceArn=ARN + "not/there", **parameters)
    with refused("InvalidParameterException", "Invalid ARN|resourceArn"):
        getattr(ecr, operation)(resourceArn="not-an-arn", **parameters)

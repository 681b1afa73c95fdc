"""The README's promise: what `wharfage env` prints is all that the aws CLI, crane and skopeo need."""

import json

import pytest

import images

LOGIN = "aws ecr get-login-password | crane auth login -u AWS --password-stdin $WHARFAGE_REGISTRY\n"

EXPIRE_UNTAGGED = json.dumps(
    {
        "rules": [
            {
                "rulePriority": 1,
                "selection": {"tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 7},
                "action": {"type": "expire"},
            }
        ]
    }
)


def crane_image(shell):
    """Makes image.tar, an image with one layer."""
    shell("echo hello > hello.txt; tar -cf layer.tar hello.txt; crane append -f layer.tar -t test/hello:v1 -o image.tar")


def test_the_repositories_of_the_manifests_are_there(shell):
    listed = json.loads(shell("aws ecr describe-repositories"))["repositories"]
    by_name = {repository["repositoryName"]: repository for repository in listed}
    assert {"hello", "shop/api", "shop/web", "ci/build-cache"} <= by_name.keys()
    api = by_name["shop/api"]
    assert api["imageTagMutability"] == "IMMUTABLE_WITH_EXCLUSION"
    assert {entry["filter"] for entry in api["imageTagMutabilityExclusionFilters"]} == {"dev-*", "latest"}
    assert api["registryId"] == "123456789012"
    assert api["repositoryArn"] == "arn:aws:ecr:local-1:123456789012:repository/shop/api"


def test_repository_uris_are_what_clients_pull_from(shell, server):
    query = "--repository-names hello --query 'repositories[0].repositoryUri' --output text"
    assert shell(f"aws ecr describe-repositories {query}") == f"{server.address}/hello"


def test_the_aws_cli_creates_a_repository_and_finds_it(shell, repository_name):
    created = json.loads(shell(f"aws ecr create-repository --repository-name {repository_name}"))["repository"]
    found = json.loads(shell(f"aws ecr describe-repositories --repository-names {repository_name}"))["repositories"]
    assert found == [created]


def test_an_enforced_policy_of_the_manifests_is_put_and_one_in_preview_is_not(shell):
    put = json.loads(shell("aws ecr get-lifecycle-policy --repository-name ci/build-cache"))
    assert json.loads(put["lifecyclePolicyText"])["rules"][0]["action"] == {"type": "expire"}
    with pytest.raises(AssertionError, match="LifecyclePolicyNotFoundException"):
        shell("aws ecr get-lifecycle-policy --repository-name shop/api")


def test_the_aws_cli_puts_a_lifecycle_policy_and_previews_it(shell, repository):
    name = f"--repository-name {repository}"
    put = json.loads(shell(f'aws ecr put-lifecycle-policy {name} --lifecycle-policy-text "$POLICY"', POLICY=EXPIRE_UNTAGGED))
    assert json.loads(put["lifecyclePolicyText"]) == json.loads(EXPIRE_UNTAGGED)
    assert json.loads(shell(f"aws ecr start-lifecycle-policy-preview {name}"))["status"] == "IN_PROGRESS"
    shell(f"aws ecr wait lifecycle-policy-preview-complete {name}")
    preview = json.loads(shell(f"aws ecr get-lifecycle-policy-preview {name}"))
    assert preview["status"] == "COMPLETE"
    assert preview["summary"]["expiringImageTotalCount"] == 0


def test_crane_logs_in_with_the_aws_clis_password_then_pushes_and_pulls(shell, repository):
    crane_image(shell)
    image = f"$WHARFAGE_REGISTRY/{repository}:v1"
    shell(f"{LOGIN} crane push image.tar {image}; crane pull {image} pulled.tar")
    assert shell("tar -xf pulled.tar --wildcards '*.tar.gz' && tar -xzOf *.tar.gz hello.txt") == "hello"
    assert shell(f"crane ls $WHARFAGE_REGISTRY/{repository}") == "v1"
    pushed = shell(f"crane digest {image}")
    described = json.loads(shell(f"aws ecr describe-images --repository-name {repository}"))["imageDetails"]
    assert [(found["imageDigest"], found["imageTags"]) for found in described] == [(pushed, ["v1"])]


def test_crane_is_refused_without_a_login(shell, repository):
    crane_image(shell)
    with pytest.raises(AssertionError, match=r"UNAUTHORIZED|401"):
        shell(f"crane push image.tar $WHARFAGE_REGISTRY/{repository}:v1")


def test_crane_makes_an_index_of_two_platforms_in_the_registry(shell, repository):
    crane_image(shell)
    image = f"$WHARFAGE_REGISTRY/{repository}"
    shell(
        f"""{LOGIN}
        crane push image.tar {image}:amd64
        crane mutate --set-platform linux/arm64 -t {image}:arm64 {image}:amd64
        crane index append -t {image}:both -m {image}:amd64 -m {image}:arm64
        crane pull --platform linux/arm64 {image}:both arm64.tar
        """
    )
    both = json.loads(shell(f"crane manifest {image}:both"))
    assert [entry["digest"] for entry in both["manifests"]] == [
        shell(f"crane digest {image}:amd64"),
        shell(f"crane digest {image}:arm64"),
    ]


def test_crane_copies_between_repositories_and_tags(shell, repository):
    crane_image(shell)
    shell("aws ecr create-repository --repository-name $NAME", NAME=f"{repository}-copy")
    source, target = f"$WHARFAGE_REGISTRY/{repository}:v1", f"$WHARFAGE_REGISTRY/{repository}-copy:v1"
    shell(f"{LOGIN} crane push image.tar {source}; crane copy {source} {target}; crane tag {target} stable")
    assert shell(f"crane digest {source}") == shell(f"crane digest $WHARFAGE_REGISTRY/{repository}-copy:stable")


def test_an_immutable_tag_of_the_manifests_cannot_be_moved_but_an_excluded_one_can(shell):
    api = "$WHARFAGE_REGISTRY/shop/api"
    shell(
        f"""{LOGIN}
        for word in one two; do
            echo $word > word.txt; tar -cf $word.layer word.txt; crane append -f $word.layer -t shop/api:$word -o $word.tar
        done
        crane push one.tar {api}:v1.0.0
        crane push one.tar {api}:latest
        crane push two.tar {api}:latest
        """
    )
    with pytest.raises(AssertionError, match="TAG_INVALID"):
        shell(f"crane push two.tar {api}:v1.0.0")
    assert shell(f"crane digest {api}:v1.0.0") != shell(f"crane digest {api}:latest")


def test_skopeo_copies_a_multi_platform_index_in_and_out(shell, repository, tmp_path):
    index = images.multi_platform("skopeo")
    images.write_layout(tmp_path / "in", index)
    image = f"docker://$WHARFAGE_REGISTRY/{repository}:v1"
    shell(
        f"""{LOGIN}
        skopeo copy --all --dest-tls-verify=false oci:in {image}
        skopeo copy --all --src-tls-verify=false {image} oci:out
        """
    )
    assert images.read_layout_digest(tmp_path / "out") == index.digest
    raw = json.loads(shell(f"skopeo inspect --raw --tls-verify=false {image}"))
    assert [entry["platform"]["architecture"] for entry in raw["manifests"]] == ["amd64", "arm64"]
    tags = json.loads(shell(f"skopeo list-tags --tls-verify=false docker://$WHARFAGE_REGISTRY/{repository}"))
    assert tags["Tags"] == ["v1"]


def test_skopeo_logs_in_with_the_aws_clis_password(shell, repository, tmp_path):
    images.write_layout(tmp_path / "in", images.image("login"))
    shell(
        f"""
        aws ecr get-login-password |
            skopeo login --authfile auth.json --tls-verify=false -u AWS --password-stdin $WHARFAGE_REGISTRY
        skopeo copy --authfile auth.json --dest-tls-verify=false oci:in docker://$WHARFAGE_REGISTRY/{repository}:v1
        skopeo delete --authfile auth.json --tls-verify=false docker://$WHARFAGE_REGISTRY/{repository}:v1
        """
    )
    assert json.loads(shell(f"aws ecr list-images --repository-name {repository}"))["imageIds"] == []


def test_what_the_shell_had_set_for_another_registry_does_not_get_in_the_way(shell, server):
    described = shell(
        """
        export AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE AWS_SECRET_ACCESS_KEY=x AWS_SESSION_TOKEN=x AWS_PROFILE=prod
        export AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1 AWS_ENDPOINT_URL=http://127.0.0.1:1
        export AWS_DEFAULT_PROFILE=prod AWS_ENDPOINT_URL_ECR=http://127.0.0.1:1 AWS_USE_FIPS_ENDPOINT=true
        export AWS_WEB_IDENTITY_TOKEN_FILE=/nowhere AWS_ROLE_ARN=arn:aws:iam::123456789012:role/ci
        export AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:1 AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=true
        export http_proxy=http://127.0.0.1:1 HTTP_PROXY=http://127.0.0.1:1
        eval "$(wharfage env --data "$DATA")"
        aws ecr describe-registry --query registryId --output text
        """,
        DATA=str(server.data),
    )
    assert described == "123456789012"


@pytest.mark.parametrize(
    ("language", "evaluate"),
    [
        ("bash", 'eval "$(wharfage env --data "$DATA")"'),
        ("zsh", 'eval "$(wharfage env --data "$DATA" --shell zsh)"'),
        ("fish", 'wharfage env --data "$DATA" --shell fish | source'),
    ],
)
def test_every_shell_finds_the_registry(shell, server, language, evaluate):
    ask = "; ".join(["aws ecr describe-registry --query registryId --output text", "printenv WHARFAGE_REGISTRY"])
    output = shell(
        f"{language} -c '{evaluate}; {ask}'",
        DATA=str(server.data), AWS_PROFILE="prod", AWS_CONFIG_FILE="/nowhere", AWS_ENDPOINT_URL="http://127.0.0.1:1", WHARFAGE_REGISTRY="-",
    )  # fmt: skip
    assert output.split() == ["123456789012", server.address]


def test_a_registry_is_chosen_by_its_name(shell, server):
    script = 'eval "$(wharfage env --data "$DATA" --registry home)"; aws configure get region; aws ecr describe-registry'
    assert shell(script, DATA=str(server.data)).startswith("local-1")


def test_an_archived_image_is_not_pulled_until_it_is_restored(shell, repository):
    crane_image(shell)
    image = f"$WHARFAGE_REGISTRY/{repository}:v1"
    archive = f"aws ecr update-image-storage-class --repository-name {repository} --image-id imageTag=v1 --target-storage-class"
    shell(f"{LOGIN} crane push image.tar {image}; {archive} ARCHIVE")
    with pytest.raises(AssertionError, match=r"MANIFEST_UNKNOWN|404"):
        shell(f"crane pull {image} pulled.tar")
    shell(f"crane push image.tar {image}; crane pull {image} pulled.tar")

"""Helpers of the lifecycle policy tests: rules, resources, and the images of a repository."""

from kube import API_VERSION

TIER = {"tier": "prod"}


def rule(number=1, status="any", count="imageCountMoreThan", action="expire", priority=1, **selection):
    """A rule. By default all but the youngest `number` images go."""
    selection |= {"tagStatus": status, "countType": count, "countNumber": number}
    if count != "imageCountMoreThan":
        selection["countUnit"] = "days"
    act = {"type": action} | ({"targetStorageClass": "archive"} if action == "transition" else {})
    return {"rulePriority": priority, "selection": selection, "action": act}


def repository(namespace, registry, name="api", labels=TIER, **spec):
    """Declares a Repository and waits for it; returns the repository's name."""
    full = f"{namespace}/{name}"
    spec = {"registryRef": {"name": registry}, "repositoryName": full, **spec}
    metadata = {"name": name, "labels": labels}
    namespace.apply({"apiVersion": API_VERSION, "kind": "Repository", "metadata": metadata, "spec": spec})
    namespace.ready("Repository", name)
    return full


def policy(namespace, registry, name="keep", rules=None, mode="Enforce", **spec):
    """Declares a LifecyclePolicy for the repositories with TIER, or for what `spec` says."""
    if "repositoryRef" not in spec:
        spec.setdefault("repositorySelector", {"matchLabels": TIER})
    spec = {"registryRef": {"name": registry}, "mode": mode, "rules": rules or [rule()], **spec}
    metadata = {"name": name}
    return namespace.apply({"apiVersion": API_VERSION, "kind": "LifecyclePolicy", "metadata": metadata, "spec": spec})


def stored(ecr, repository):
    """The images of a repository: tags by digest. Archived images are there, too."""
    pages = ecr.get_paginator("describe_images").paginate(repositoryName=repository, filter={"imageStatus": "ANY"})
    details = [one for page in pages for one in page["imageDetails"]]
    return {one["imageDigest"]: sorted(one.get("imageTags", [])) for one in details}


def outcome(one, repository):
    """The outcome for one repository in a policy's status."""
    (found,) = [it for it in one["status"]["repositories"] if it["name"] == repository]
    return found


def reasons(namespace, name="keep"):
    """The reasons of the events about a LifecyclePolicy."""
    return {event["reason"] for event in namespace.events("LifecyclePolicy", name)}

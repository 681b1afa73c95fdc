//! Texts and names of errors.

use super::*;

/// Texts observed from Amazon ECR, which clients and scripts search for.
#[test]
fn texts_are_amazon_ecrs() {
    let repository_ref = || RepositoryRef {
        account: "123456789012".parse().unwrap(),
        name: "team/app".parse().unwrap(),
    };
    let (digest, other) = (Digest::sha256(b"one"), Digest::sha256(b"two"));
    let named = "with name 'team/app' in the registry with id '123456789012'";
    let found = "with name 'team/app' does not exist in the registry with id '123456789012'";
    let required = format!("required for pushing image into repository {named} do not exist");
    let table = [
        (EcrError::RepositoryNotFound(repository_ref()), format!("The repository {found}")),
        (EcrError::RepositoryAlreadyExists(repository_ref()), format!("The repository {}", found.replace("does not exist", "already exists"))),
        (
            EcrError::RepositoryNotEmpty(repository_ref()),
            "The repository with name 'team/app' in registry with id '123456789012' cannot be deleted because it still \
             contains images"
                .to_owned(),
        ),
        (
            EcrError::ImageNotFound { digest: "null".into(), tag: "v1".into(), repository_ref: repository_ref() },
            format!("The image with imageId {{imageDigest:'null', imageTag:'v1'}} does not exist within the repository {named}"),
        ),
        (
            EcrError::ImageAlreadyExists { digest: digest.clone(), tag: "v1".into(), repository_ref: repository_ref() },
            format!(
                "Image with digest '{digest}' and tag 'v1' already exists in the repository with name 'team/app' in \
                 registry with id '123456789012'"
            ),
        ),
        (
            EcrError::ImageTagAlreadyExists { tag: "v1".parse().unwrap(), repository: repository_ref().name },
            "The image tag 'v1' already exists in the 'team/app' repository and cannot be overwritten because the \
             repository is immutable."
                .to_owned(),
        ),
        (
            EcrError::LayersNotFound { digests: vec![digest.clone(), other.clone()], repository_ref: repository_ref() },
            format!("Layers with digests '[{digest}, {other}]' {required}"),
        ),
        (
            EcrError::ReferencedImagesNotFound { digests: vec![digest.clone()], repository_ref: repository_ref() },
            format!("Images with digests '[{digest}]' {required}"),
        ),
        (EcrError::LayerPartTooSmall, "All layer parts except the last part should be at least 5MB".to_owned()),
        (EcrError::RepositoryPolicyNotFound(repository_ref()), format!("Repository policy does not exist for the repository {named}")),
        (EcrError::LifecyclePolicyNotFound(repository_ref()), format!("Lifecycle policy does not exist for the repository {named}")),
        (
            EcrError::RegistryPolicyNotFound(repository_ref().account),
            "Registry policy does not exist in the registry with id '123456789012'".to_owned(),
        ),
        (AuthError::MissingAuthenticationToken.into(), "Missing Authentication Token".to_owned()),
        (AuthError::UnrecognizedClient.into(), "The security token included in the request is invalid.".to_owned()),
    ];
    for (error, text) in table {
        assert_eq!(error.to_string(), text);
    }
}

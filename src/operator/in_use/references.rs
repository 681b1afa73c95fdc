//! Parses the names of images in Pods: the registry, the repository, the image. No I/O.
//!
//! The grammar is that of container runtimes (`distribution/reference`):
//! `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`. A name that no ECR repository can have is ignored. The
//! usual crate is not used: it does not parse `[::1]:5000/…`, and it needs a dozen crates and
//! megabytes of automaton for one regular expression.

use std::collections::{BTreeSet, HashMap, HashSet};

use wharfage_domain::names::{AccountId, Digest, Reference, Region, RepositoryName, Tag};

/// The host of names without one.
const DOCKER_HUB: &str = "docker.io";

/// An image in use, as a Pod's spec or status names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UsedImage {
    /// An image of a repository.
    Named {
        /// The host, in lower case and without a scheme's own port.
        host: Box<str>,
        /// The path after the host.
        repository: RepositoryName,
        /// The digest if the name has one, because a runtime then ignores the tag; otherwise the
        /// tag.
        reference: Reference,
    },
    /// An image of an unknown repository.
    Bare(Digest),
}

impl UsedImage {
    /// Reads a container's `image`, an image volume's `reference` or a status's `imageID`. Returns
    /// nothing if it cannot be an image of an ECR repository.
    pub fn parse(text: &str) -> Option<Self> {
        // The prefix of the runtime: docker-pullable://…, docker://…
        let text = text.split_once("://").map_or(text, |(_, image)| image);
        if let Ok(digest) = text.parse() {
            return Some(Self::Bare(digest));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>().ok()?)),
            None => (text, None),
        };
        // A colon in the last part begins a tag; before it, a port.
        let last_part = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[last_part..].split_once(':') {
            Some((last_part_of_name, tag)) => {
                (&name[..last_part + last_part_of_name.len()], Some(Tag::parse_oci(tag).ok()?))
            }
            None => (name, None),
        };
        let (host, path) = split_host(name);
        let repository = match path.contains('/') {
            false if host == DOCKER_HUB => format!("library/{path}").parse().ok()?,
            _ => path.parse().ok()?,
        };
        let reference = match (digest, tag) {
            (Some(digest), _) => Reference::Digest(digest),
            (None, Some(tag)) => Reference::Tag(tag),
            (None, None) => Reference::Tag("latest".parse().ok()?),
        };
        Some(Self::Named { host: host.into(), repository, reference })
    }
}

/// Splits a name into host and path. Its first part is a host if it looks like one.
fn split_host(name: &str) -> (String, &str) {
    match name.split_once('/') {
        Some((first, rest)) if looks_like_a_host(first) => (normal(first), rest),
        _ => (DOCKER_HUB.to_owned(), name),
    }
}

fn looks_like_a_host(part: &str) -> bool {
    part == "localhost"
        || part.contains(['.', ':'])
        || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Returns a host in the form in which hosts are compared.
fn normal(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    let without_port = [":443", ":80"].into_iter().find_map(|port| host.strip_suffix(port));
    match without_port.unwrap_or(&host) {
        "index.docker.io" => DOCKER_HUB.to_owned(),
        host => host.to_owned(),
    }
}

/// The hosts of one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    named: BTreeSet<String>,
    /// Those of `ACCOUNT.dkr.ecr.REGION.…`; of any account of the region while the account is
    /// unknown.
    account: Option<AccountId>,
    region: Region,
}

impl Hosts {
    /// Returns the hosts that ECR gives to an account's registry in a region, with any domain:
    /// plain, FIPS and dual-stack.
    pub fn new(account: Option<AccountId>, region: Region) -> Self {
        Self { named: BTreeSet::new(), account, region }
    }

    /// Adds the host of a URL, or of a `repositoryUri`, which has no scheme.
    pub fn add(&mut self, url: &str) {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if !host.is_empty() {
            self.named.insert(normal(host));
        }
    }

    /// Returns whether this host, in lower case, is one of the registry.
    pub fn contains(&self, host: &str) -> bool {
        self.named.contains(host) || self.is_ecr_host(host)
    }

    fn is_ecr_host(&self, host: &str) -> bool {
        let Some((account, rest)) = host.split_once('.') else { return false };
        let forms = ["dkr.ecr.", "dkr.ecr-fips.", "dkr-ecr.", "dkr-ecr-fips."];
        let Some(rest) = forms.into_iter().find_map(|form| rest.strip_prefix(form)) else {
            return false;
        };
        let region = rest.split_once('.').map(|(region, _domain)| region);
        let this_account = match &self.account {
            Some(expected) => expected.as_str() == account,
            None => account.parse::<AccountId>().is_ok(),
        };
        this_account && region == Some(self.region.as_str())
    }
}

/// The images in use in a cluster, or in some of its namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InUse {
    by_repository: HashMap<RepositoryName, HashSet<(Box<str>, Reference)>>,
    bare: HashSet<Digest>,
}

impl InUse {
    /// Selects the images of one repository.
    pub fn of(&self, hosts: &Hosts, repository: &RepositoryName) -> UsedHere {
        let mut here = UsedHere { tags: HashSet::new(), digests: self.bare.clone() };
        for (host, reference) in self.by_repository.get(repository).into_iter().flatten() {
            match reference {
                Reference::Tag(tag) if hosts.contains(host) => {
                    here.tags.insert(tag.clone());
                }
                Reference::Tag(_) => {}
                // An unknown host may be another name of this registry. The same content under the
                // same path is then no coincidence.
                Reference::Digest(digest) => {
                    here.digests.insert(digest.clone());
                }
            }
        }
        here
    }
}

impl Extend<UsedImage> for InUse {
    fn extend<T: IntoIterator<Item = UsedImage>>(&mut self, images: T) {
        for image in images {
            match image {
                UsedImage::Bare(digest) => {
                    self.bare.insert(digest);
                }
                UsedImage::Named { host, repository, reference } => {
                    self.by_repository.entry(repository).or_default().insert((host, reference));
                }
            }
        }
    }
}

/// The images in use of one repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsedHere {
    /// The images that these tags point to now.
    pub tags: HashSet<Tag>,
    /// Images that are named by digest.
    pub digests: HashSet<Digest>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// `HOST REPOSITORY REFERENCE`, or the bare digest.
    fn read(text: &str) -> Option<String> {
        Some(match UsedImage::parse(text)? {
            UsedImage::Named { host, repository, reference } => {
                format!("{host} {repository} {reference}")
            }
            UsedImage::Bare(digest) => digest.to_string(),
        })
    }

    #[test]
    fn names_are_read_as_runtimes_read_them() {
        for (text, expected) in [
            ("nginx", "docker.io library/nginx latest"),
            ("nginx:1.27", "docker.io library/nginx 1.27"),
            ("team/api", "docker.io team/api latest"),
            ("docker.io/nginx", "docker.io library/nginx latest"),
            ("index.docker.io/library/nginx", "docker.io library/nginx latest"),
            ("localhost/api:v1", "localhost api v1"),
            ("localhost:5000/api", "localhost:5000 api latest"),
            ("[::1]:5000/team/api:v1", "[::1]:5000 team/api v1"),
            ("10.0.0.7:30500/team/api:v1", "10.0.0.7:30500 team/api v1"),
            ("Registry.Example.com/team/api:V1", "registry.example.com team/api V1"),
            ("registry.example.com:443/team/api:v1", "registry.example.com team/api v1"),
            ("registry.example.com:80/team/api:v1", "registry.example.com team/api v1"),
            ("registry.example.com:8443/team/api:v1", "registry.example.com:8443 team/api v1"),
        ] {
            assert_eq!(read(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let expected = format!("registry.example.com team/api {DIGEST}");
        for text in ["registry.example.com/team/api", "registry.example.com/team/api:v1"] {
            assert_eq!(read(&format!("{text}@{DIGEST}")).as_ref(), Some(&expected), "{text}");
        }
    }

    #[test]
    fn an_image_id_may_name_its_runtime_or_nothing_but_the_digest() {
        let named = format!("registry.example.com team/api {DIGEST}");
        assert_eq!(
            read(&format!("docker-pullable://registry.example.com/team/api@{DIGEST}")),
            Some(named)
        );
        for bare in [DIGEST.to_owned(), format!("docker://{DIGEST}")] {
            assert_eq!(read(&bare).as_deref(), Some(DIGEST), "{bare}");
        }
    }

    #[test]
    fn impossible_repository_names_are_ignored() {
        for text in [
            "",
            ":",
            "/",
            "@",
            "api:",
            "api@",
            "registry.example.com/",
            "registry.example.com/API",
            "registry.example.com/a//b",
            "registry.example.com/api:-x",
            "registry.example.com/api@sha256:abc",
            "registry.example.com/api@md5:d41d8cd98f00b204e9800998ecf8427e",
            "Not An Image",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,60}") {
            UsedImage::parse(&text);
        }

        #[test]
        fn what_is_put_together_is_taken_apart(
            host in "[a-z]{1,8}(\\.[a-z]{1,8}){1,3}(:[1-9][0-9]{2,3})?",
            path in "[a-z0-9]{2,8}(/[a-z0-9]{1,8}){0,3}",
            tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}",
        ) {
            prop_assume!(!host.ends_with(":443"));
            prop_assert_eq!(read(&format!("{host}/{path}:{tag}")), Some(format!("{host} {path} {tag}")));
            prop_assert_eq!(read(&format!("{host}/{path}:{tag}@{DIGEST}")), Some(format!("{host} {path} {DIGEST}")));
        }
    }

    fn hosts(account: Option<&str>, urls: &[&str]) -> Hosts {
        let mut hosts = Hosts::new(
            account.map(|account| account.parse().unwrap()),
            "eu-home-1".parse().unwrap(),
        );
        urls.iter().for_each(|url| hosts.add(url));
        hosts
    }

    #[test]
    fn a_registry_is_known_by_its_urls() {
        let hosts = hosts(
            None,
            &[
                "https://Registry.example.com/",
                "registry.internal:8080/team/api",
                "http://10.0.0.7:80",
            ],
        );
        for host in ["registry.example.com", "registry.internal:8080", "10.0.0.7"] {
            assert!(hosts.contains(host), "{host}");
        }
        for host in ["registry.internal", "example.com", "docker.io", ""] {
            assert!(!hosts.contains(host), "{host}");
        }
    }

    #[test]
    fn an_account_is_known_by_every_host_that_ecr_gives_it() {
        let known = hosts(Some("123456789012"), &[]);
        for host in [
            "123456789012.dkr.ecr.eu-home-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-home-1.amazonaws.com.cn",
            "123456789012.dkr.ecr-fips.eu-home-1.amazonaws.com",
            "123456789012.dkr-ecr.eu-home-1.on.aws",
            "123456789012.dkr-ecr-fips.eu-home-1.on.aws",
            "123456789012.dkr.ecr.eu-home-1.registry.example.com:8443",
        ] {
            assert!(known.contains(host), "{host}");
        }
        for host in [
            "210987654321.dkr.ecr.eu-home-1.amazonaws.com",
            "123456789012.dkr.ecr.us-east-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-home-1",
            "123456789012.s3.eu-home-1.amazonaws.com",
        ] {
            assert!(!known.contains(host), "{host}");
        }
        let unknown = hosts(None, &[]);
        assert!(unknown.contains("210987654321.dkr.ecr.eu-home-1.amazonaws.com"));
        assert!(!unknown.contains("x.dkr.ecr.eu-home-1.amazonaws.com"));
    }

    #[test]
    fn a_tag_counts_under_a_known_host_and_a_digest_under_any() {
        let mut in_use = InUse::default();
        let other = Digest::sha256(b"other");
        let bare = Digest::sha256(b"bare");
        let texts = [
            "home.example.com/team/api:v1".to_owned(),
            "other.example.com/team/api:v2".to_owned(),
            "home.example.com/team/web:v3".to_owned(),
            format!("home.example.com/team/api:v4@{DIGEST}"),
            format!("alias.example.com/team/api@{other}"),
            format!("home.example.com/team/web@{}", Digest::sha256(b"web")),
            bare.to_string(),
        ];
        in_use.extend(texts.iter().filter_map(|text| UsedImage::parse(text)));
        let here =
            in_use.of(&hosts(None, &["https://home.example.com"]), &"team/api".parse().unwrap());
        assert_eq!(here.tags, HashSet::from(["v1".parse().unwrap()]));
        assert_eq!(here.digests, HashSet::from([DIGEST.parse().unwrap(), other, bare]));
    }
}

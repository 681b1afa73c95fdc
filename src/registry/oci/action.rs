//! The actions of the OCI API: parses method, path and query into one [`OciAction`]. Pure; every
//! name in an action is valid.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;
use uuid::Uuid;

use wharfage_domain::names::{Algorithm, Digest, InvalidName, Reference, RepositoryName, Tag};

/// The number of `tag` parameters of one manifest PUT.
pub(crate) const MAX_TAG_PARAMETERS: usize = 100;
/// The largest page of a listing (ECR's limit); a larger `n` is reduced to it.
pub(crate) const MAX_PAGE: usize = 1000;

/// A request of the OCI API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OciAction {
    /// `GET /v2/`: checks the protocol and the token.
    Ping,
    /// `GET /v2/_catalog`.
    Catalog(PageRequest),
    /// An action in a repository.
    Repository(RepositoryName, RepositoryAction),
}

/// An action in a repository (the endpoints of distribution-spec 1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RepositoryAction {
    /// end-3; `head` requests the headers only.
    ReadManifest {
        reference: Reference,
        /// HEAD instead of GET.
        head: bool,
    },
    /// end-7, with the tags of the path and of the query.
    PutManifest {
        /// The digest in the path, if it has one.
        digest: Option<Digest>,
        /// The tags to set, each once.
        tags: Vec<Tag>,
    },
    /// end-9 by digest.
    DeleteManifest(Digest),
    /// end-9 by tag.
    DeleteTag(Tag),
    /// end-2.
    ReadBlob {
        digest: Digest,
        /// HEAD instead of GET.
        head: bool,
    },
    /// end-10.
    DeleteBlob(Digest),
    /// end-4 and end-11.
    StartUpload(UploadStart),
    /// end-5.
    PatchUpload(Uuid),
    /// end-6.
    PutUpload(Uuid, Digest),
    /// end-13.
    UploadStatus(Uuid),
    /// end-14.
    CancelUpload(Uuid),
    /// end-8.
    ListTags(PageRequest),
    /// end-12.
    ListReferrers {
        digest: Digest,
        /// The requested type.
        artifact_type: Option<String>,
        /// The digest after which the page begins (ours, from a Link).
        after: Option<Digest>,
    },
}

/// The start of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UploadStart {
    /// A session, hashed by this algorithm from the first byte.
    Session(Algorithm),
    /// An upload with the whole blob in the body.
    Whole(Digest),
    /// A mount from another repository; without `from`, from any that the client may read.
    Mount { digest: Digest, from: Option<RepositoryName> },
}

/// The requested page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PageRequest {
    /// The number of entries, at most [`MAX_PAGE`]; the endpoint has a default.
    pub(crate) n: Option<usize>,
    /// The entry after which the page begins.
    pub(crate) last: Option<String>,
}

/// The reason why a request is not an action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ActionError {
    /// The path is not an endpoint.
    #[error("there is no such endpoint in the distribution API")]
    UnknownEndpoint,
    /// The endpoint does not accept the method, only these.
    #[error("the endpoint takes {0}")]
    Method(&'static str),
    /// The repository's name is not valid.
    #[error("{0}")]
    Name(InvalidName),
    /// A digest or an algorithm is not valid.
    #[error("{0}")]
    Digest(InvalidName),
    /// A tag to set is not valid.
    #[error("{0}")]
    Tag(InvalidName),
    /// A tag to read or delete is not valid, so it does not exist.
    #[error("{0}")]
    NoSuchTag(InvalidName),
    /// The upload's id is not one of ours.
    #[error("upload {0:?} is no session")]
    Upload(String),
    /// A query parameter is missing or not valid.
    #[error("Invalid parameter at '{name}' failed to satisfy constraint: '{rule}'")]
    Parameter {
        name: &'static str,
        /// The constraint.
        rule: &'static str,
    },
    /// More tags than one request may set.
    #[error("a request may carry at most {MAX_TAG_PARAMETERS} tag parameters")]
    TooManyTags,
}

impl OciAction {
    /// Parses a request line with a path of `/v2` or below `/v2/`.
    ///
    /// # Errors
    /// The first error. An unauthenticated client does not see it.
    pub(crate) fn parse(
        method: &Method,
        path: &str,
        query: Option<&str>,
    ) -> Result<Self, ActionError> {
        // Names need no encoding, so only unusual clients pay for decoding. An encoded slash
        // separates segments like any other: the decoded path is parsed.
        let path = decoded(path).ok_or(ActionError::UnknownEndpoint)?;
        let rest = path.strip_prefix("/v2").unwrap_or_default();
        let Some(rest) = rest.strip_prefix('/').filter(|rest| !rest.is_empty()) else {
            return read(method).map(|_| Self::Ping);
        };
        let query = QueryString(query.unwrap_or_default());
        if rest == "_catalog" {
            read(method)?;
            return Ok(Self::Catalog(query.page()?));
        }
        let (before, last) = rest.rsplit_once('/').ok_or(ActionError::UnknownEndpoint)?;
        if last == "uploads"
            && let Some(name) = before.strip_suffix("/blobs")
        {
            return start_upload(method, name, &query);
        }
        let (name, kind) = before.rsplit_once('/').ok_or(ActionError::UnknownEndpoint)?;
        match (kind, last) {
            ("manifests", reference) => manifest(method, name, reference, &query),
            ("blobs", digest) => blob(method, name, digest),
            ("uploads", "") => {
                let name = name.strip_suffix("/blobs").ok_or(ActionError::UnknownEndpoint)?;
                start_upload(method, name, &query)
            }
            ("uploads", id) => {
                let name = name.strip_suffix("/blobs").ok_or(ActionError::UnknownEndpoint)?;
                upload(method, name, id, &query)
            }
            ("tags", "list") => {
                read(method)?;
                Ok(Self::Repository(repository(name)?, RepositoryAction::ListTags(query.page()?)))
            }
            ("referrers", digest) => {
                read(method)?;
                let after = query.get("last")?.and_then(|last| last.parse().ok());
                let artifact_type =
                    query.get("artifactType")?.filter(|text| !text.is_empty()).map(Cow::into_owned);
                let digest = parse_digest(digest)?;
                Ok(Self::Repository(
                    repository(name)?,
                    RepositoryAction::ListReferrers { digest, artifact_type, after },
                ))
            }
            _ => Err(ActionError::UnknownEndpoint),
        }
    }

    /// Returns the name of the action for metrics and the log.
    pub(crate) fn operation(&self) -> &'static str {
        let act = match self {
            Self::Ping => return "GET v2",
            Self::Catalog(_) => return "GET catalog",
            Self::Repository(_, act) => act,
        };
        match act {
            RepositoryAction::ReadManifest { head: false, .. } => "GET manifest",
            RepositoryAction::ReadManifest { head: true, .. } => "HEAD manifest",
            RepositoryAction::PutManifest { .. } => "PUT manifest",
            RepositoryAction::DeleteManifest(_) => "DELETE manifest",
            RepositoryAction::DeleteTag(_) => "DELETE tag",
            RepositoryAction::ReadBlob { head: false, .. } => "GET blob",
            RepositoryAction::ReadBlob { head: true, .. } => "HEAD blob",
            RepositoryAction::DeleteBlob(_) => "DELETE blob",
            RepositoryAction::StartUpload(UploadStart::Session(_)) => "POST upload",
            RepositoryAction::StartUpload(UploadStart::Whole(_)) => "POST blob",
            RepositoryAction::StartUpload(UploadStart::Mount { .. }) => "POST mount",
            RepositoryAction::PatchUpload(_) => "PATCH upload",
            RepositoryAction::PutUpload(..) => "PUT upload",
            RepositoryAction::UploadStatus(_) => "GET upload",
            RepositoryAction::CancelUpload(_) => "DELETE upload",
            RepositoryAction::ListTags(_) => "GET tags",
            RepositoryAction::ListReferrers { .. } => "GET referrers",
        }
    }
}

fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if text.contains('%') {
        percent_decode_str(text).decode_utf8().ok()
    } else {
        Some(Cow::Borrowed(text))
    }
}

fn repository(name: &str) -> Result<RepositoryName, ActionError> {
    name.parse().map_err(ActionError::Name)
}

fn parse_digest(text: &str) -> Result<Digest, ActionError> {
    text.parse().map_err(ActionError::Digest)
}

/// Checks that the method is GET or HEAD; returns whether it is HEAD.
fn read(method: &Method) -> Result<bool, ActionError> {
    match *method {
        Method::GET => Ok(false),
        Method::HEAD => Ok(true),
        _ => Err(ActionError::Method("GET, HEAD")),
    }
}

fn manifest(
    method: &Method,
    name: &str,
    reference: &str,
    query: &QueryString<'_>,
) -> Result<OciAction, ActionError> {
    let reference = || {
        reference.parse::<Reference>().map_err(|error| match *method {
            _ if reference.contains(':') => ActionError::Digest(error),
            Method::PUT => ActionError::Tag(error),
            _ => ActionError::NoSuchTag(error),
        })
    };
    let act = match *method {
        Method::GET => RepositoryAction::ReadManifest { reference: reference()?, head: false },
        Method::HEAD => RepositoryAction::ReadManifest { reference: reference()?, head: true },
        Method::DELETE => match reference()? {
            Reference::Tag(tag) => RepositoryAction::DeleteTag(tag),
            Reference::Digest(digest) => RepositoryAction::DeleteManifest(digest),
        },
        Method::PUT => {
            let mut tags = Vec::new();
            let digest = match reference()? {
                Reference::Digest(digest) => Some(digest),
                Reference::Tag(tag) => {
                    tags.push(tag);
                    None
                }
            };
            for text in query.all("tag") {
                if tags.len() >= MAX_TAG_PARAMETERS {
                    return Err(ActionError::TooManyTags);
                }
                let tag = Tag::parse_oci(&text?).map_err(ActionError::Tag)?;
                if !tags.contains(&tag) {
                    tags.push(tag);
                }
            }
            RepositoryAction::PutManifest { digest, tags }
        }
        _ => return Err(ActionError::Method("GET, HEAD, PUT, DELETE")),
    };
    Ok(OciAction::Repository(repository(name)?, act))
}

fn blob(method: &Method, name: &str, digest: &str) -> Result<OciAction, ActionError> {
    let act = match *method {
        Method::GET => RepositoryAction::ReadBlob { digest: parse_digest(digest)?, head: false },
        Method::HEAD => RepositoryAction::ReadBlob { digest: parse_digest(digest)?, head: true },
        Method::DELETE => RepositoryAction::DeleteBlob(parse_digest(digest)?),
        _ => return Err(ActionError::Method("GET, HEAD, DELETE")),
    };
    Ok(OciAction::Repository(repository(name)?, act))
}

fn start_upload(
    method: &Method,
    name: &str,
    query: &QueryString<'_>,
) -> Result<OciAction, ActionError> {
    if *method != Method::POST {
        return Err(ActionError::Method("POST"));
    }
    let start = if let Some(mount) = query.get("mount")? {
        // An invalid digest or source counts as missing: the client gets a session.
        match (mount.parse(), query.get("from")?.map(|from| from.parse()).transpose()) {
            (Ok(digest), Ok(from)) => UploadStart::Mount { digest, from },
            _ => UploadStart::Session(Algorithm::Sha256),
        }
    } else if let Some(digest) = query.get("digest")? {
        UploadStart::Whole(parse_digest(&digest)?)
    } else {
        let algorithm =
            query.get("digest-algorithm")?.map(|text| text.parse().map_err(ActionError::Digest));
        UploadStart::Session(algorithm.transpose()?.unwrap_or(Algorithm::Sha256))
    };
    Ok(OciAction::Repository(repository(name)?, RepositoryAction::StartUpload(start)))
}

fn upload(
    method: &Method,
    name: &str,
    id: &str,
    query: &QueryString<'_>,
) -> Result<OciAction, ActionError> {
    let session =
        || Uuid::try_parse(id).map_err(|_| ActionError::Upload(id.chars().take(64).collect()));
    let act = match *method {
        Method::GET | Method::HEAD => RepositoryAction::UploadStatus(session()?),
        Method::PATCH => RepositoryAction::PatchUpload(session()?),
        Method::PUT => {
            let id = session()?;
            let digest = query.get("digest")?;
            let digest = digest.ok_or(ActionError::Parameter {
                name: "digest",
                rule: "Member must not be null",
            })?;
            RepositoryAction::PutUpload(id, parse_digest(&digest)?)
        }
        Method::DELETE => RepositoryAction::CancelUpload(session()?),
        _ => return Err(ActionError::Method("GET, PATCH, PUT, DELETE")),
    };
    Ok(OciAction::Repository(repository(name)?, act))
}

/// A query string, parsed in place. `+` is not decoded: no value of this API has a space, and some
/// clients do not encode the plus of media types.
struct QueryString<'a>(&'a str);

impl<'a> QueryString<'a> {
    fn all<'q>(
        &'q self,
        name: &'static str,
    ) -> impl Iterator<Item = Result<Cow<'a, str>, ActionError>> + 'q {
        let pairs = self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.filter(move |(key, _)| *key == name).map(move |(_, value)| {
            decoded(value).ok_or(ActionError::Parameter { name, rule: "Member must be UTF-8" })
        })
    }

    fn get(&self, name: &'static str) -> Result<Option<Cow<'a, str>>, ActionError> {
        self.all(name).next().transpose()
    }

    fn page(&self) -> Result<PageRequest, ActionError> {
        let n = self.get("n")?.map(|n| match n.parse::<usize>() {
            Ok(n) => Ok(n.min(MAX_PAGE)),
            Err(_) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => Ok(MAX_PAGE),
            Err(_) => Err(ActionError::Parameter {
                name: "n",
                rule: "Member must be a number from 0 to 1000",
            }),
        });
        let last = self.get("last")?.filter(|last| !last.is_empty()).map(Cow::into_owned);
        Ok(PageRequest { n: n.transpose()?, last })
    }
}

#[cfg(test)]
mod tests;

//! The identifiers of the field as validated newtypes: parse at the edge, never check again.
//!
//! Pure: no I/O, no clock, nothing else of ours.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The reason for which a name was refused: what it is, the value, and the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: {rule}")]
pub struct InvalidName {
    /// The name of the parsed value for a reader ("repository name").
    pub kind: &'static str,
    /// The offending value, shortened when it is very long.
    pub value: String,
    /// The rule that it breaks, in words or as the regular expression that ECR cites.
    pub rule: &'static str,
}

impl InvalidName {
    fn new(kind: &'static str, value: &str, rule: &'static str) -> Self {
        let value = value.chars().take(300).collect();
        Self { kind, value, rule }
    }
}

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// The text as it was parsed.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                value.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0.into()
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text_newtype!(
    /// An AWS account id, which is also ECR's `registryId`: twelve digits.
    AccountId
);

impl FromStr for AccountId {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        if s.len() == 12 && s.bytes().all(|b| b.is_ascii_digit()) {
            Ok(Self(s.into()))
        } else {
            Err(InvalidName::new("registry id", s, "it must be twelve digits"))
        }
    }
}

text_newtype!(
    /// An AWS region name, `[0-9a-z-]{2,25}`.
    Region
);

impl FromStr for Region {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        let fits = (2..=25).contains(&s.len())
            && s.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase() || b == b'-');
        if fits {
            Ok(Self(s.into()))
        } else {
            Err(InvalidName::new("region", s, "it must match [0-9a-z-]{2,25}"))
        }
    }
}

text_newtype!(
    /// A Registry's name, which is also that of its folder and of its aws profile: a DNS subdomain,
    /// as Kubernetes requires of an object's name.
    RegistryName
);

impl FromStr for RegistryName {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        const RULE: &str = "it must be 1 to 253 of a-z, 0-9, - and ., and begin and end with a letter or a digit, each part between dots too";
        let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let is_label = |label: &[u8]| {
            let ends =
                label.first().is_some_and(alphanumeric) && label.last().is_some_and(alphanumeric);
            ends && label.iter().all(|b| alphanumeric(b) || *b == b'-')
        };
        if s.len() <= 253 && s.as_bytes().split(|b| *b == b'.').all(is_label) {
            Ok(Self(s.into()))
        } else {
            Err(InvalidName::new("registry name", s, RULE))
        }
    }
}

text_newtype!(
    /// A private repository's name: 2 to 256 characters of [`RepositoryName::PATTERN`].
    RepositoryName
);

impl RepositoryName {
    /// The pattern that ECR's service model and distribution-spec 1.1 share.
    pub const PATTERN: &'static str =
        r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*";
}

impl FromStr for RepositoryName {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        if !(2..=256).contains(&s.len()) {
            return Err(InvalidName::new("repository name", s, "it must have 2 to 256 characters"));
        }
        if !s.split('/').all(is_name_component) {
            return Err(InvalidName::new("repository name", s, Self::PATTERN));
        }
        Ok(Self(s.into()))
    }
}

/// Returns whether `part` is what [`RepositoryName::PATTERN`] allows between two slashes. Every
/// request parses a name, and a scan of its bytes costs a tenth of what the regular expression
/// does.
fn is_name_component(part: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric);
    let separator =
        |run: &[u8]| matches!(run, b"" | b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-');
    ends && bytes.split(alphanumeric).all(separator)
}

text_newtype!(
    /// An image tag: 1 to 300 characters of the OCI alphabet (ECR's API limit; `/v2/` takes 128, see [`Tag::parse_oci`]).
    Tag
);

impl Tag {
    /// The longest tag that the distribution spec allows, in bytes.
    pub const MAX_OCI: usize = 128;

    /// Parses a tag by the distribution spec's rule: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
    pub fn parse_oci(s: &str) -> Result<Self, InvalidName> {
        const RULE: &str = "it must match [a-zA-Z0-9_][a-zA-Z0-9._-]* and have 1 to 128 characters";
        let tag: Self = s.parse().map_err(|_| InvalidName::new("tag", s, RULE))?;
        if s.len() > Self::MAX_OCI { Err(InvalidName::new("tag", s, RULE)) } else { Ok(tag) }
    }
}

impl FromStr for Tag {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        let mut bytes = s.bytes();
        let head = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if head && rest && s.len() <= 300 {
            Ok(Self(s.into()))
        } else {
            Err(InvalidName::new(
                "tag",
                s,
                "it must match [a-zA-Z0-9_][a-zA-Z0-9._-]* and have 1 to 300 characters",
            ))
        }
    }
}

/// A digest algorithm that the registry computes (OCI image-spec, "Registered Algorithms").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// SHA-256, which every client uses by default.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name before the colon of a digest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Returns how many hexadecimal digits its digests have.
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl FromStr for Algorithm {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        match s {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(InvalidName::new("digest algorithm", s, "sha256 and sha512 are supported")),
        }
    }
}

text_newtype!(
    /// A content digest, `sha256:` and 64 or `sha512:` and 128 lowercase hexadecimal digits.
    Digest
);

impl Digest {
    /// Its algorithm.
    pub fn algorithm(&self) -> Algorithm {
        if self.0.starts_with("sha512:") { Algorithm::Sha512 } else { Algorithm::Sha256 }
    }

    /// The hexadecimal digits after the colon.
    pub fn hex(&self) -> &str {
        &self.0[7..]
    }

    /// The digest of these bytes.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        match algorithm {
            Algorithm::Sha256 => Self::from_hash(algorithm, &sha2::Sha256::digest(bytes)),
            Algorithm::Sha512 => Self::from_hash(algorithm, &sha2::Sha512::digest(bytes)),
        }
    }

    /// The SHA-256 digest of these bytes.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }

    /// A digest from a hash that was computed elsewhere; `hash` has the algorithm's length.
    pub fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Self {
        debug_assert_eq!(hash.len() * 2, algorithm.hex_len());
        Self(format!("{}:{}", algorithm.as_str(), hex::encode(hash)).into())
    }
}

impl FromStr for Digest {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        const RULE: &str =
            "it must be sha256: and 64, or sha512: and 128, lowercase hexadecimal digits";
        let invalid = || InvalidName::new("digest", s, RULE);
        let (algorithm, hex) = s.split_once(':').ok_or_else(invalid)?;
        let algorithm: Algorithm = algorithm.parse().map_err(|_| invalid())?;
        let lower_hex = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() == algorithm.hex_len() && lower_hex {
            Ok(Self(s.into()))
        } else {
            Err(invalid())
        }
    }
}

/// The reference to a manifest in a request: a tag or a digest (the spec's `<tag-or-digest>`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By tag.
    Tag(Tag),
    /// By digest.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        if s.contains(':') { s.parse().map(Self::Digest) } else { Tag::parse_oci(s).map(Self::Tag) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A private repository's ARN: `arn:aws:ecr:{region}:{account}:repository/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepositoryArn {
    /// The region that the repository is in.
    pub region: Region,
    /// The registry that it belongs to.
    pub account: AccountId,
    /// Its name.
    pub name: RepositoryName,
}

impl fmt::Display for RepositoryArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arn:aws:ecr:{}:{}:repository/{}", self.region, self.account, self.name)
    }
}

impl FromStr for RepositoryArn {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        const RULE: &str = "it must be arn:aws:ecr:REGION:ACCOUNT:repository/NAME";
        let invalid = || InvalidName::new("repository ARN", s, RULE);
        let mut parts = s.splitn(6, ':');
        let mut next = || parts.next().ok_or_else(invalid);
        let (arn, partition, service) = (next()?, next()?, next()?);
        let (region, account, resource) = (next()?, next()?, next()?);
        if arn != "arn" || !partition.starts_with("aws") || service != "ecr" {
            return Err(invalid());
        }
        Ok(Self {
            region: region.parse().map_err(|_| invalid())?,
            account: account.parse().map_err(|_| invalid())?,
            name: resource
                .strip_prefix("repository/")
                .and_then(|n| n.parse().ok())
                .ok_or_else(invalid)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repository_names_follow_the_models_pattern() {
        for good in ["ab", "0a", "a/b", "team/app-1", "a__b", "a---b", "a.b_c/d"] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good} is valid");
        }
        let long = "a".repeat(257);
        for bad in [
            "a", "", "A/b", "a//b", "/ab", "ab/", "a..b", "a___b", "-ab", "../etc", "a/../b",
            "a b", "ab\n", &long,
        ] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad:?} is refused");
        }
    }

    #[test]
    fn tags_are_longer_at_the_api_than_at_the_oci_door() {
        let tag = "t".repeat(200);
        assert!(tag.parse::<Tag>().is_ok());
        assert!(Tag::parse_oci(&tag).is_err());
        for bad in ["", ".a", "-a", "a/b", "a:b", "a\u{e9}"] {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?} is refused");
        }
    }

    #[test]
    fn digests_have_the_length_of_their_algorithm() {
        let digest = Digest::sha256(b"");
        assert_eq!(
            digest.as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(digest.as_str().parse::<Digest>().as_ref(), Ok(&digest));
        let long = Digest::of(Algorithm::Sha512, b"");
        assert_eq!(long.hex().len(), 128);
        assert_eq!(long.as_str().parse::<Digest>().unwrap().algorithm(), Algorithm::Sha512);
        for bad in
            ["sha256:", "sha256:E3B0", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256", ":", ""]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?} is refused");
        }
    }

    #[test]
    fn repository_arns_round_trip() {
        let text = "arn:aws:ecr:local-1:123456789012:repository/team/app";
        assert_eq!(text.parse::<RepositoryArn>().unwrap().to_string(), text);
        for bad in [
            "arn:aws:s3:local-1:123456789012:repository/ab",
            "arn:aws:ecr:local-1:1:repository/ab",
            "ab",
            "arn:aws:ecr:local-1:123456789012:ab",
        ] {
            assert!(bad.parse::<RepositoryArn>().is_err(), "{bad:?} is refused");
        }
    }

    #[test]
    fn a_registrys_name_is_one_of_kubernetes() {
        for good in ["home", "a", "eu-1.example", "0", &"a".repeat(253)] {
            assert_eq!(good.parse::<RegistryName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a..b",
            "-a",
            "a-",
            "a.-b",
            "A",
            "a b",
            "a\n[default]",
            "\u{e4}",
            &"a".repeat(254),
        ] {
            assert!(bad.parse::<RegistryName>().is_err(), "{bad:?} is refused");
        }
    }

    proptest! {
        #[test]
        fn parsing_any_text_never_panics_and_keeps_what_it_accepts(text in "\\PC{0,320}") {
            if let Ok(name) = text.parse::<RepositoryName>() { prop_assert_eq!(name.as_str(), &text); }
            if let Ok(tag) = text.parse::<Tag>() { prop_assert_eq!(tag.as_str(), &text); }
            if let Ok(name) = text.parse::<RegistryName>() { prop_assert_eq!(name.as_str(), &text); }
            if let Ok(digest) = text.parse::<Digest>() { prop_assert_eq!(digest.as_str(), &text); }
            if let Ok(arn) = text.parse::<RepositoryArn>() { prop_assert!(arn.name.as_str().len() >= 2); }
        }

        #[test]
        fn a_repository_name_is_what_the_pattern_matches(text in "[a-c0.:_/A-]{2,24}") {
            let full = regex::Regex::new(&format!("^(?:{})$", RepositoryName::PATTERN)).unwrap();
            prop_assert_eq!(text.parse::<RepositoryName>().is_ok(), full.is_match(&text));
        }

        #[test]
        fn a_repository_name_never_holds_a_path_trick(name in RepositoryName::PATTERN) {
            if let Ok(name) = name.parse::<RepositoryName>() {
                prop_assert!(name.as_str().split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
            }
        }
    }
}

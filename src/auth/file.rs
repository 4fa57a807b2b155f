//! The file of tokens and roles, and that of peer secrets, as text.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use toml::value::{Datetime, Offset};

use super::token::Hash;
use super::{Caller, Right, Verb};
use crate::machine::Span;

/// Shortest peer secret, in bytes.
const SECRET_MIN: usize = 32;

/// What is wrong with a file: one message for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AuthError(String);

/// Everybody who is known.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    pub(super) tokens: Vec<Token>,
    /// There is a file of tokens, though it may be empty.
    pub(super) has_tokens: bool,
    /// What may be done without a token.
    pub(super) anonymous: Vec<Right>,
    /// Of secrets that nodes share.
    pub(super) secrets: Vec<Hash>,
    /// Nodes prove who they are by certificates.
    pub(super) has_certificates: bool,
    /// The one that this node says.
    said: Option<Secret>,
}

/// A secret as it is, which nothing prints.
#[derive(Clone)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

/// One token.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) name: Arc<str>,
    pub(super) hash: Hash,
    pub(super) rights: Arc<[Right]>,
    /// It is over then, in milliseconds since 1970.
    pub(super) expires_ms: Option<u64>,
}

impl Token {
    /// Is it not over yet?
    pub(super) fn lasts(&self, now_ms: u64) -> bool {
        self.expires_ms.is_none_or(|end| now_ms < end)
    }

    /// Who sends it.
    pub(super) fn caller(&self) -> Caller {
        Caller::Token {
            name: Arc::clone(&self.name),
            rights: Arc::clone(&self.rights),
            hash: self.hash.clone(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    roles: Vec<RawRole>,
    #[serde(default)]
    tokens: Vec<RawToken>,
    #[serde(default)]
    anonymous: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRole {
    name: String,
    rights: Vec<RawRight>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRight {
    verbs: Vec<Verb>,
    key: Option<String>,
    key_b64: Option<String>,
    prefix: Option<String>,
    prefix_b64: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    name: String,
    sha256: String,
    roles: Vec<String>,
    expires: Option<Datetime>,
}

impl Directory {
    /// Reads the file of tokens.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, AuthError> {
        let raw: RawFile = toml::from_str(text).map_err(|error| malformed(text, &error))?;
        let mut roles: BTreeMap<String, Vec<Right>> = BTreeMap::new();
        for role in raw.roles {
            let rights = role.rights.into_iter().map(|right| right.read(&role.name));
            let rights = rights.collect::<Result<_, _>>()?;
            if roles.insert(role.name.clone(), rights).is_some() {
                return Err(AuthError(format!("two roles are called {:?}", role.name)));
            }
        }
        let of = |who: &str, names: &[String]| -> Result<Vec<Right>, AuthError> {
            let mut all = Vec::new();
            for name in names {
                let unknown =
                    || AuthError(format!("{who} has the role {name:?}, which there is not"));
                all.extend(roles.get(name).ok_or_else(unknown)?.iter().cloned());
            }
            Ok(all)
        };
        let mut tokens: Vec<Token> = Vec::new();
        for token in raw.tokens {
            let name = token.name;
            let wrong = |why: &str| AuthError(format!("token {name:?}: {why}"));
            let hash = Hash::parse(&token.sha256)
                .ok_or_else(|| wrong("sha256 is not 64 hex digits; `mmapd token` makes them"))?;
            if tokens.iter().any(|other| *other.name == *name) {
                return Err(wrong("there are two of this name"));
            }
            if tokens.iter().any(|other| other.hash == hash) {
                return Err(wrong("another name has the same one"));
            }
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(wrong("a name is made of visible ASCII"));
            }
            let expires_ms = token.expires.map(|end| millis(&end)).map(|end| {
                end.ok_or_else(|| wrong("expires is not like 2027-01-31T00:00:00Z, without quotes"))
            });
            let rights = of(&format!("token {name:?}"), &token.roles)?.into();
            let expires_ms = expires_ms.transpose()?;
            tokens.push(Token { name: name.into(), hash, rights, expires_ms });
        }
        let anonymous = of("anonymous", &raw.anonymous)?;
        Ok(Self { tokens, has_tokens: true, anonymous, ..Self::default() })
    }

    /// The same, with the secrets that nodes share.
    #[must_use]
    pub fn with_secrets(mut self, secrets: Vec<String>) -> Self {
        self.secrets = secrets.iter().map(|secret| Hash::of(secret.as_bytes())).collect();
        self.said = secrets.into_iter().next().map(Secret);
        self
    }

    /// The same, where certificates tell who is a node.
    #[must_use]
    pub fn with_certificates(mut self) -> Self {
        self.has_certificates = true;
        self
    }

    /// What this node says to others to be known as one: an `Authorization`.
    #[must_use]
    pub fn credentials(&self) -> Option<String> {
        self.said.as_ref().map(|secret| format!("Bearer {}", secret.0))
    }

    /// How many tokens there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// What TOML says is wrong, without what stands there, since that may be a token: no excerpt,
/// and no text that it found in place of something else.
fn malformed(text: &str, error: &toml::de::Error) -> AuthError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    // A verb that is none is told apart from other text by its quotes alone.
    let message = match error.message().strip_prefix("unknown variant `") {
        Some(rest) => {
            let (_, expected) = rest.split_once('`').unwrap_or_default();
            format!("unknown variant{expected}")
        }
        None => error.message().to_owned(),
    };
    let mut parts = message.split('"');
    let mut why = parts.next().unwrap_or_default().to_owned();
    while let Some(_found) = parts.next() {
        why.push_str("...");
        why.push_str(parts.next().unwrap_or_default());
    }
    AuthError(format!("line {line}: {}", why.trim_end()))
}

impl RawRight {
    fn read(self, role: &str) -> Result<Right, AuthError> {
        let wrong = |why: &str| AuthError(format!("role {role:?}: {why}"));
        if self.verbs.is_empty() {
            return Err(wrong("a right without verbs allows nothing; remove it"));
        }
        let bytes = |base64: &str| STANDARD.decode(base64).map_err(|_| wrong("that is no base64"));
        let given = (self.key, self.key_b64, self.prefix, self.prefix_b64);
        let span = match &given {
            (None, None, None, None) => Span::prefix(b""),
            (Some(key), None, None, None) => Span::key(key.as_bytes()),
            (None, Some(base64), None, None) => Span::key(&bytes(base64)?),
            (None, None, Some(prefix), None) => Span::prefix(prefix.as_bytes()),
            (None, None, None, Some(base64)) => Span::prefix(&bytes(base64)?),
            _ => return Err(wrong("a right names a key or a prefix, not both")),
        };
        Ok(Right { verbs: self.verbs, span })
    }
}

/// The secrets of a file, one a line; lines that are empty or begin with `#` are none.
///
/// # Errors
/// There is none, or one that is too short to be one.
pub fn read_secrets(text: &str) -> Result<Vec<String>, AuthError> {
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let secrets: Vec<String> = lines.map(str::to_owned).collect();
    if secrets.is_empty() {
        return Err(AuthError("has no secret; `mmapd token` makes one".into()));
    }
    for secret in &secrets {
        if secret.len() < SECRET_MIN || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(AuthError(format!(
                "a secret has at least {SECRET_MIN} visible ASCII characters; `mmapd token` makes one"
            )));
        }
    }
    Ok(secrets)
}

/// Milliseconds since 1970 of a date with time and offset (Howard Hinnant's days from civil).
fn millis(when: &Datetime) -> Option<u64> {
    let (date, time) = (when.date?, when.time?);
    let offset_minutes = match when.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let (month, day) = (i64::from(date.month), i64::from(date.day));
    // Years begin in March, so that the day that may be missing is the last.
    let year = i64::from(date.year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let minutes =
        days * 24 * 60 + i64::from(time.hour) * 60 + i64::from(time.minute) - offset_minutes;
    let seconds = minutes * 60 + i64::from(time.second.unwrap_or(0));
    u64::try_from(seconds * 1000).ok()
}

#[cfg(test)]
mod tests {
    use super::super::{Denied, Need};
    use super::*;

    const FILE: &str = r#"
anonymous = ["public"]

[[roles]]
name = "public"
rights = [{ verbs = ["read"], prefix = "public/" }]

[[roles]]
name = "app"
rights = [
    { verbs = ["read", "write"], prefix = "app/" },
    { verbs = ["read"], key = "config" },
    { verbs = ["lock"], prefix_b64 = "/w==" },
    { verbs = ["lease"] },
]

[[tokens]]
name = "one"
sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
roles = ["app", "public"]
expires = 2027-01-31T01:00:00.5+01:00
"#;

    #[test]
    fn a_token_may_what_its_roles_may_until_it_is_over() {
        let directory = Directory::parse(FILE).expect("it is right");
        let end = 1_801_353_600_000;
        let caller = directory.identify(Some("bearer abc"), end - 1).expect("it is known");
        assert_eq!(caller.name(), "one");
        let read = |key: &[u8]| Need::new(Verb::Read, Span::key(key));
        let write = |key: &[u8]| Need::new(Verb::Write, Span::key(key));
        for need in [read(b"app/x"), write(b"app/x"), read(b"config"), read(b"public/x")] {
            assert_eq!(directory.allow(&caller, &[need]), Ok(()));
        }
        for need in [write(b"config"), read(b"config2"), read(b"x"), Need::all(Verb::Observe)] {
            assert_eq!(directory.allow(&caller, &[read(b"app/"), need]), Err(Denied::Forbidden));
        }
        let lock = Need::new(Verb::Lock, Span::key(b"\xff\x01"));
        assert_eq!(directory.allow(&caller, &[lock, Need::all(Verb::Lease)]), Ok(()));
        for wrong in ["Bearer abd", "Bearer ", "Bearer abc d"] {
            assert!(directory.identify(Some(wrong), 0).is_err(), "{wrong}");
        }
        assert!(directory.identify(Some("Bearer abc"), end).is_err(), "it is over");
        assert_eq!(directory.allow(&Caller::Anonymous, &[read(b"public/x")]), Ok(()));
        let denied = directory.allow(&Caller::Anonymous, &[read(b"app/x")]);
        assert_eq!(denied, Err(Denied::Unauthenticated));
    }

    #[test]
    fn a_file_that_is_wrong_says_where() {
        for (text, why) in [
            ("x = 1", "unknown field"),
            ("[[roles]]\nname = \"a\"\nrights = [{ verbs = [] }]", "without verbs"),
            ("[[roles]]\nname = \"a\"\nrights = [{ verbs = [\"peer\"] }]", "unknown variant"),
            (
                "[[roles]]\nname = \"a\"\nrights = [{ verbs = [\"read\"], key = \"a\", prefix = \"b\" }]",
                "not both",
            ),
            ("[[tokens]]\nname = \"a\"\nsha256 = \"12\"\nroles = []", "64 hex digits"),
            ("anonymous = [\"x\"]", "which there is not"),
        ] {
            let error = Directory::parse(text).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
        // What stands there is not told.
        for text in [
            "x = 1\n\nroles = \"mmapd_secret\"",
            "\n\nmmapd_secret",
            "\n\nanonymous = mmapd_secret",
        ] {
            let error = Directory::parse(text).expect_err("it is wrong").to_string();
            assert!(error.starts_with("line 3: ") || error.starts_with("line 1: "), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let twice = format!("{FILE}\n{}", FILE.split_once("[[tokens]]").expect("one").1);
        let twice = twice.replace("+01:00\n\n", "+01:00\n\n[[tokens]]\n");
        assert!(
            Directory::parse(&twice).expect_err("two").to_string().contains("two of this name")
        );
    }

    #[test]
    fn secrets_are_long_enough() {
        let long = "x".repeat(32);
        let read = read_secrets(&format!("# old and new\n{long}\n\n  {long}y  \n"));
        assert_eq!(read, Ok(vec![long.clone(), format!("{long}y")]));
        assert!(read_secrets("# nothing\n").is_err());
        assert!(read_secrets("short").is_err());
        assert!(read_secrets(&format!("{long} {long}")).is_err());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:34:56Z", Some(951_827_696_000)),
            ("2026-11-23T00:00:00Z", Some(1_795_392_000_000)),
            ("2026-11-23T02:00:00+02:00", Some(1_795_392_000_000)),
            ("1969-12-31T23:59:59Z", None),
            ("2026-11-23T00:00:00", None),
            ("2026-11-23", None),
        ] {
            assert_eq!(millis(&text.parse().expect("a date")), want, "{text}");
        }
    }
}

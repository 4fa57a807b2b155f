//! Who somebody is, and what they may do: tokens, roles, and the secret that nodes share.
//!
//! A *token* is 256 bits of chance that a client sends as `Authorization: Bearer`. The file of
//! tokens holds their SHA-256 only: with that much chance in them, guessing is hopeless and a
//! slow hash would only slow the service down. Each token has roles, a role has rights, a
//! right is a list of verbs and a range of keys. What is not allowed is denied.
//!
//! Nodes prove by a *peer secret*, known to all of them, that they are nodes. The file has one a
//! line: the first is what this node says, all are what it accepts, so that it can be
//! changed without an interruption.
//!
//! Left out: reading files, and when. The caller has both, and hands a new [`Directory`] over
//! when they changed.

#![forbid(unsafe_code)]

mod file;
mod token;

use std::sync::Arc;

use tokio::sync::watch;

use file::Token;
pub use file::{AuthError, Directory, read_secrets};
pub use token::{Hash, new_token};

use crate::machine::Span;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Values, versions and the past are looked at.
    Read,
    /// Keys are written or removed.
    Write,
    /// Leases are made, kept alive, ended or looked at.
    Lease,
    /// Locks are taken, given back or looked at.
    Lock,
    /// The cluster and its nodes are looked at.
    Observe,
    /// The cluster and its nodes are changed.
    Operate,
    /// A node of the cluster says something to another.
    #[serde(skip)]
    Peer,
    /// What anybody may have: does this process work, and pages that are the same for everybody.
    /// Nobody is asked who that is.
    #[serde(skip)]
    Probe,
}

impl Verb {
    /// As in the file of tokens.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Lease => "lease",
            Self::Lock => "lock",
            Self::Observe => "observe",
            Self::Operate => "operate",
            Self::Peer => "peer",
            Self::Probe => "probe",
        }
    }
}

/// What is done to which keys. Where there are no keys the span is of no meaning, but for
/// locks: there it is of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// What is done.
    pub verb: Verb,
    /// To which keys.
    pub span: Span,
}

impl Need {
    /// Of these keys.
    #[must_use]
    pub fn new(verb: Verb, span: Span) -> Self {
        Self { verb, span }
    }

    /// Of everything.
    #[must_use]
    pub fn all(verb: Verb) -> Self {
        Self { verb, span: Span::prefix(&[]) }
    }
}

/// Some verbs on a range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// What may be done.
    pub verbs: Vec<Verb>,
    /// To which keys; of no meaning for verbs without keys.
    pub span: Span,
}

impl Right {
    fn covers(&self, need: &Need) -> bool {
        let of_keys = matches!(need.verb, Verb::Read | Verb::Write | Verb::Lock);
        self.verbs.contains(&need.verb) && (!of_keys || encloses(&self.span, &need.span))
    }
}

fn encloses(outer: &Span, inner: &Span) -> bool {
    let ends = match (&outer.end, &inner.end) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(outer), Some(inner)) => inner <= outer,
    };
    inner.is_empty() || (outer.start <= inner.start && ends)
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub enum Caller {
    /// Nobody said who it is.
    #[default]
    Anonymous,
    /// Somebody with a token.
    Token {
        /// Its name.
        name: Arc<str>,
        /// What it may do.
        rights: Arc<[Right]>,
        /// What it is known by.
        hash: Hash,
    },
    /// A node that shares the peer secret, which is known by this, or has a certificate of the
    /// cluster.
    Peer(Option<Hash>),
}

impl Caller {
    /// For the audit log.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Anonymous => "-",
            Self::Token { name, .. } => name,
            Self::Peer(_) => "peer",
        }
    }
}

/// Everybody who is known, shared by all who ask, and replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct Access {
    directory: Arc<watch::Sender<Arc<Directory>>>,
}

/// The files say who is known, the settings only where they are: settings with the same paths
/// are the same.
impl PartialEq for Access {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Access {
    /// With these.
    #[must_use]
    pub fn new(directory: Directory) -> Self {
        Self { directory: Arc::new(watch::Sender::new(Arc::new(directory))) }
    }

    /// As of now.
    #[must_use]
    pub fn now(&self) -> Arc<Directory> {
        Arc::clone(&self.directory.borrow())
    }

    /// Tells when others are known.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Directory>> {
        self.directory.subscribe()
    }

    /// Knows from now on whom `other` knows.
    pub fn follow(&self, other: &Self) {
        self.directory.send_replace(other.now());
    }
}

/// Why a request may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Nobody known asks: no token, a wrong one or one that is over.
    Unauthenticated,
    /// Who asks is known, and may not do that.
    Forbidden,
}

impl Directory {
    /// Who somebody with this `Authorization` is. `None` in, nobody out.
    ///
    /// # Errors
    /// `Unauthenticated`: it is not a token that is known and not over. Which of these is not said.
    pub fn identify(&self, credentials: Option<&str>, now_ms: u64) -> Result<Caller, Denied> {
        let Some(credentials) = credentials else { return Ok(Caller::Anonymous) };
        let (scheme, token) = credentials.split_once(' ').ok_or(Denied::Unauthenticated)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Denied::Unauthenticated);
        }
        let hash = Hash::of(token.trim().as_bytes());
        // All are compared, whichever it is.
        let mut caller = None;
        for known in &self.secrets {
            if known.equals(&hash) {
                caller = Some(Caller::Peer(Some(known.clone())));
            }
        }
        for known in &self.tokens {
            if known.hash.equals(&hash) && known.lasts(now_ms) {
                caller = Some(known.caller());
            }
        }
        caller.ok_or(Denied::Unauthenticated)
    }

    /// The same caller, as it is known here and now: somebody who stays longer than a request
    /// may have been known by others.
    ///
    /// # Errors
    /// `Unauthenticated`: it is not known any more, or it is over.
    pub fn again(&self, caller: &Caller, now_ms: u64) -> Result<Caller, Denied> {
        let known = match caller {
            Caller::Anonymous => Some(Caller::Anonymous),
            Caller::Token { hash, .. } => {
                let mut all = self.tokens.iter();
                all.find(|token| token.hash == *hash && token.lasts(now_ms)).map(Token::caller)
            }
            Caller::Peer(Some(hash)) => self.secrets.contains(hash).then(|| caller.clone()),
            Caller::Peer(None) => self.has_certificates.then(|| caller.clone()),
        };
        known.ok_or(Denied::Unauthenticated)
    }

    /// When `caller` is over, in milliseconds since 1970; `None`: never.
    #[must_use]
    pub fn end_of(&self, caller: &Caller) -> Option<u64> {
        let Caller::Token { hash, .. } = caller else { return None };
        self.tokens.iter().find(|token| token.hash == *hash)?.expires_ms
    }

    /// May `caller` do one of these to some key, whichever that is? Who may not needs no look at
    /// what is asked for.
    #[must_use]
    pub fn may_some(&self, caller: &Caller, verbs: &[Verb]) -> bool {
        let among = |rights: &[Right]| {
            rights.iter().any(|right| right.verbs.iter().any(|verb| verbs.contains(verb)))
        };
        match caller {
            Caller::Peer(_) => true,
            Caller::Token { rights, .. } => among(rights),
            Caller::Anonymous => !self.has_tokens || among(&self.anonymous),
        }
    }

    /// Is nothing for those who do not say who they are, but what is the same for everybody?
    #[must_use]
    pub fn shuts_out(&self, caller: &Caller) -> bool {
        matches!(caller, Caller::Anonymous) && self.has_tokens && self.anonymous.is_empty()
    }

    /// Could another node take part in the protocol?
    #[must_use]
    pub fn may_have_company(&self) -> bool {
        self.knows_nodes() || !self.has_tokens
    }

    /// Can nodes show that they are nodes?
    #[must_use]
    pub fn knows_nodes(&self) -> bool {
        !self.secrets.is_empty() || self.has_certificates
    }

    /// May `caller` do all of this?
    ///
    /// # Errors
    /// Why not.
    pub fn allow(&self, caller: &Caller, needs: &[Need]) -> Result<(), Denied> {
        if needs.iter().all(|need| self.allows(caller, need)) {
            return Ok(());
        }
        Err(match caller {
            Caller::Anonymous => Denied::Unauthenticated,
            Caller::Token { .. } | Caller::Peer(_) => Denied::Forbidden,
        })
    }

    fn allows(&self, caller: &Caller, need: &Need) -> bool {
        if need.verb == Verb::Peer {
            // Who takes part in the protocol can do what tokens are there to prevent.
            let is_open = self.may_have_company() && !self.knows_nodes();
            return is_open || matches!(caller, Caller::Peer(_));
        }
        if need.verb == Verb::Probe {
            return true;
        }
        match caller {
            // It can put anything into the log as it is.
            Caller::Peer(_) => true,
            Caller::Token { rights, .. } => rights.iter().any(|right| right.covers(need)),
            Caller::Anonymous => {
                !self.has_tokens || self.anonymous.iter().any(|right| right.covers(need))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(verb: Verb, span: Span) -> Need {
        Need::new(verb, span)
    }

    #[test]
    fn a_right_covers_what_lies_within_its_keys() {
        let right = Right { verbs: vec![Verb::Read, Verb::Lease], span: Span::prefix(b"app/") };
        let range = |start: &'static [u8], end: Option<&'static [u8]>| Span {
            start: start.into(),
            end: end.map(Into::into),
        };
        for (want, verb, span) in [
            (true, Verb::Read, Span::key(b"app/")),
            (true, Verb::Read, Span::prefix(b"app/x")),
            (true, Verb::Read, Span::prefix(b"app/")),
            (true, Verb::Read, range(b"app/a", Some(b"app/b"))),
            (true, Verb::Read, range(b"app/", Some(b"app0"))),
            (true, Verb::Read, range(b"z", Some(b"a"))),
            (true, Verb::Lease, Span::prefix(b"")),
            (false, Verb::Write, Span::key(b"app/a")),
            (false, Verb::Read, Span::key(b"app")),
            (false, Verb::Read, Span::prefix(b"app")),
            (false, Verb::Read, Span::prefix(b"")),
            (false, Verb::Read, range(b"app/", None)),
            (false, Verb::Read, range(b"app/", Some(b"app0\0"))),
            (false, Verb::Read, range(b"app.", Some(b"app/b"))),
            (false, Verb::Lock, Span::key(b"app/")),
        ] {
            assert_eq!(right.covers(&need(verb, span.clone())), want, "{verb:?} {span:?}");
        }
    }

    #[test]
    fn nobody_is_denied_where_there_are_no_tokens_but_at_the_door_of_peers() {
        let open = Directory::default();
        assert_eq!(open.allow(&Caller::Anonymous, &[Need::all(Verb::Operate)]), Ok(()));
        assert_eq!(open.allow(&Caller::Anonymous, &[Need::all(Verb::Peer)]), Ok(()));
        let open = open.with_secrets(vec!["x".repeat(32)]);
        assert_eq!(open.allow(&Caller::Anonymous, &[Need::all(Verb::Write)]), Ok(()));
        let peer = [Need::all(Verb::Peer)];
        assert_eq!(open.allow(&Caller::Anonymous, &peer), Err(Denied::Unauthenticated));
        let bearer = format!("Bearer {}", "x".repeat(32));
        let caller = open.identify(Some(&bearer), 0).expect("it is the secret");
        assert_eq!(open.allow(&caller, &peer), Ok(()));
        for wrong in ["Bearer y", "Basic eA==", "x", "Bearer", &bearer[..38]] {
            assert!(open.identify(Some(wrong), 0).is_err(), "{wrong}");
        }
    }

    const TOKENS: &str = r#"
[[roles]]
name = "app"
rights = [{ verbs = ["write"], prefix = "app/" }]
[[tokens]]
name = "one"
sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
roles = ["app"]
expires = 2027-01-31T00:00:00Z
"#;

    #[test]
    fn tokens_close_the_door_of_peers_too() {
        let guarded = Directory::parse(TOKENS).expect("it is right");
        let peer = [Need::all(Verb::Peer)];
        assert_eq!(guarded.allow(&Caller::Anonymous, &peer), Err(Denied::Unauthenticated));
        let one = guarded.identify(Some("Bearer abc"), 0).expect("it is known");
        assert_eq!(guarded.allow(&one, &peer), Err(Denied::Forbidden));
        assert!(!guarded.knows_nodes());
        assert!(guarded.with_secrets(vec!["x".repeat(32)]).knows_nodes());
    }

    #[test]
    fn who_stays_is_looked_at_again() {
        let directory = Directory::parse(TOKENS).expect("it is right");
        let directory = directory.with_secrets(vec!["x".repeat(32), "y".repeat(32)]);
        let one = directory.identify(Some("Bearer abc"), 0).expect("it is known");
        let end = directory.end_of(&one).expect("it has an end");
        assert!(directory.again(&one, end - 1).is_ok());
        assert_eq!(directory.again(&one, end).map(drop), Err(Denied::Unauthenticated));
        let node = format!("Bearer {}", "x".repeat(32));
        let node = directory.identify(Some(&node), 0).expect("it is known");
        assert!(directory.again(&node, 0).is_ok());
        // The token is gone, and of the secrets the one that was said.
        let later = Directory::parse("").expect("nobody").with_secrets(vec!["y".repeat(32)]);
        assert!(later.again(&one, 0).is_err());
        assert!(later.again(&node, 0).is_err());
        assert!(later.again(&Caller::Peer(None), 0).is_err());
        assert!(later.again(&Caller::Anonymous, 0).is_ok());
        // It has other rights now.
        let other = Directory::parse(&TOKENS.replace("write", "read")).expect("it is right");
        let again = other.again(&one, 0).expect("it is known");
        let write = [Need::new(Verb::Write, Span::prefix(b"app/"))];
        assert_eq!(other.allow(&again, &write), Err(Denied::Forbidden));
    }

    #[test]
    fn who_may_nothing_is_known_before_anything_is_read() {
        let directory = Directory::parse(TOKENS).expect("it is right");
        let one = directory.identify(Some("Bearer abc"), 0).expect("it is known");
        assert!(directory.may_some(&one, &[Verb::Read, Verb::Write]));
        assert!(!directory.may_some(&one, &[Verb::Read]));
        assert!(!directory.may_some(&Caller::Anonymous, &[Verb::Write]));
        assert!(directory.shuts_out(&Caller::Anonymous) && !directory.shuts_out(&one));
        let public = Directory::parse(&format!("anonymous = [\"app\"]\n{TOKENS}"));
        let public = public.expect("it is right");
        assert!(!public.shuts_out(&Caller::Anonymous));
        assert!(public.may_some(&Caller::Anonymous, &[Verb::Write]));
        assert!(!Directory::default().shuts_out(&Caller::Anonymous));
        assert!(Directory::default().may_some(&Caller::Anonymous, &[Verb::Write]));
    }
}

//! What a request wants to do to which keys: the one place that knows. Every route says it
//! here before it does anything, and once there are users, here is decided who may.

use super::Edge;
use super::error::ApiError;
use crate::machine::{Command, Conditions, Op, Request, Span, Txn};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
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
}

/// What is done to which keys. Where there are no keys the span is of no meaning, but for
/// locks: there it is of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) verb: Verb,
    pub(super) span: Span,
}

impl Need {
    pub(super) fn new(verb: Verb, span: Span) -> Self {
        Self { verb, span }
    }

    /// Of everything.
    pub(super) fn all(verb: Verb) -> Self {
        Self { verb, span: Span::prefix(&[]) }
    }
}

/// All that a request to the state machine needs. A lease that is ended takes keys along that
/// nobody names: whoever may do that to leases may do it.
pub(super) fn needs(request: &Request) -> Vec<Need> {
    let key = |verb, key: &[u8]| Need::new(verb, Span::key(key));
    let mut needs = match &request.command {
        Command::Put { key: name, conditions, prev, .. }
        | Command::Delete { key: name, conditions, prev } => {
            let mut needs = vec![key(Verb::Write, name)];
            needs.extend((*prev || looks(conditions)).then(|| key(Verb::Read, name)));
            needs
        }
        Command::DeleteRange { span } => vec![Need::new(Verb::Write, span.clone())],
        Command::Touch { key: name, conditions, .. } => {
            let mut needs = vec![key(Verb::Write, name)];
            needs.extend(looks(conditions).then(|| key(Verb::Read, name)));
            needs
        }
        Command::Grant { .. } | Command::KeepAlive { .. } | Command::Revoke { .. } => {
            vec![Need::all(Verb::Lease)]
        }
        Command::Lock { name, .. } | Command::Unlock { name, .. } => vec![key(Verb::Lock, name)],
        Command::Txn(txn) => of_txn(txn),
        Command::Batch(writes) => {
            let read = writes.iter().filter(|write| looks(&write.conditions));
            let mut needs: Vec<Need> = read.map(|write| key(Verb::Read, &write.key)).collect();
            needs.extend(writes.iter().map(|write| key(Verb::Write, &write.key)));
            needs
        }
        Command::Tidy(_) => vec![Need::all(Verb::Operate)],
    };
    needs.extend(request.fence.as_ref().map(|fence| key(Verb::Lock, &fence.name)));
    needs
}

/// A condition that does not hold tells the key's revision.
fn looks(conditions: &Conditions) -> bool {
    conditions.if_match.is_some() || conditions.if_none_match.is_some()
}

/// Both branches count: which one it will be is not known yet.
fn of_txn(txn: &Txn) -> Vec<Need> {
    let compared = txn.compares.iter().map(|it| Need::new(Verb::Read, Span::key(&it.key)));
    let mut needs: Vec<Need> = compared.collect();
    for op in txn.then.iter().chain(&txn.otherwise) {
        match op {
            Op::Put { key, prev, .. } => {
                needs.push(Need::new(Verb::Write, Span::key(key)));
                needs.extend(prev.then(|| Need::new(Verb::Read, Span::key(key))));
            }
            Op::Delete { span, prev } => {
                needs.push(Need::new(Verb::Write, span.clone()));
                needs.extend(prev.then(|| Need::new(Verb::Read, span.clone())));
            }
            Op::Get { span, .. } => needs.push(Need::new(Verb::Read, span.clone())),
            Op::Grant { .. } => needs.push(Need::all(Verb::Lease)),
        }
    }
    needs
}

impl Edge {
    /// May the request do all this? For now there are no users, and everybody may.
    ///
    /// # Errors
    /// None yet.
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "credentials come in here")]
    pub(super) fn allow(&self, needs: &[Need]) -> Result<(), ApiError> {
        debug_assert!(!needs.is_empty(), "every route needs something");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::machine::{Compare, Content, Fence, Life, Subject, Tags, Write};

    #[test]
    fn a_request_needs_all_it_touches() {
        let name = Bytes::from_static(b"a");
        let of = |verb| Need::new(verb, Span::key(b"a"));
        let delete = |conditions, prev| Command::Delete { key: name.clone(), conditions, prev };
        let plain = delete(Conditions::default(), false);
        assert_eq!(needs(&plain.into()), [of(Verb::Write)]);
        let tags = Conditions { if_match: Some(Tags::Any), if_none_match: None };
        assert_eq!(needs(&delete(tags, false).into()), [of(Verb::Write), of(Verb::Read)]);
        let fence = Some(Fence { name: name.clone(), token: 1 });
        let command = delete(Conditions::default(), true);
        let fenced = Request { once: None, fence, command };
        assert_eq!(needs(&fenced), [of(Verb::Write), of(Verb::Read), of(Verb::Lock)]);
    }

    #[test]
    fn a_batch_needs_what_its_writes_need() {
        let write = |key: &'static [u8], conditions| Write {
            key: Bytes::from_static(key),
            put: None,
            conditions,
        };
        let tags = Conditions { if_match: Some(Tags::Any), if_none_match: None };
        let batch = Command::Batch(vec![write(b"a", Conditions::default()), write(b"b", tags)]);
        let of = |verb, key| Need::new(verb, Span::key(key));
        let want = [of(Verb::Read, b"b"), of(Verb::Write, b"a"), of(Verb::Write, b"b")];
        assert_eq!(needs(&batch.into()), want);
    }

    #[test]
    fn a_transaction_needs_both_its_branches() {
        let name = Bytes::from_static(b"a");
        let content =
            Content { value: Bytes::new(), content_type: String::new(), life: Life::NewLease };
        let tmp = Span::prefix(b"tmp/");
        let txn = Txn {
            compares: vec![Compare { key: name.clone(), what: Subject::Exists(true) }],
            then: vec![Op::Grant { ttl_ms: 1 }, Op::Put { key: name, content, prev: false }],
            otherwise: vec![
                Op::Delete { span: tmp.clone(), prev: true },
                Op::Get { span: Span::prefix(b""), limit: 1 },
            ],
        };
        let want = [
            Need::new(Verb::Read, Span::key(b"a")),
            Need::all(Verb::Lease),
            Need::new(Verb::Write, Span::key(b"a")),
            Need::new(Verb::Write, tmp.clone()),
            Need::new(Verb::Read, tmp),
            Need::all(Verb::Read),
        ];
        assert_eq!(needs(&Command::Txn(txn).into()), want);
    }
}

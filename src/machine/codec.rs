//! The bytes of commands in log entries. Values and their rules are in `code.rs`.

use bytes::Bytes;

use super::code::{Code, Input, put_bytes};
use super::command::{
    CONTENT_TYPE_MAX, Command, Compare, Conditions, Content, Fence, KEY_MAX, LOCK_NAME_MAX, Life,
    ONCE_MAX, OWNER_MAX, Once, Op, Relation, Request, Span, Subject, Tags, Tidy, Txn, Write,
};

impl Code for Tags {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Any => out.push(1),
            Self::Revisions(list) => {
                out.push(2);
                list.put(out);
            }
        }
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        match input.byte()? {
            1 => Some(Self::Any),
            2 => Vec::parse(input).map(Self::Revisions),
            _ => None,
        }
    }
}

impl Code for Conditions {
    fn put(&self, out: &mut Vec<u8>) {
        self.if_match.put(out);
        self.if_none_match.put(out);
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some(Self { if_match: Option::parse(input)?, if_none_match: Option::parse(input)? })
    }
}

impl Code for Life {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Endless => out.push(0),
            Self::Ttl(ms) => {
                out.push(1);
                ms.put(out);
            }
            Self::Lease(id) => {
                out.push(2);
                id.put(out);
            }
            Self::NewLease => out.push(3),
        }
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some(match input.byte()? {
            0 => Self::Endless,
            1 => Self::Ttl(u64::parse(input)?),
            2 => Self::Lease(u64::parse(input)?),
            3 => Self::NewLease,
            _ => return None,
        })
    }
}

impl Code for Content {
    fn put(&self, out: &mut Vec<u8>) {
        self.life.put(out);
        put_bytes(self.content_type.as_bytes(), out);
        self.value.put(out);
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        let life = Life::parse(input)?;
        let content_type = input.text(CONTENT_TYPE_MAX)?;
        Some(Self { value: Bytes::parse(input)?, content_type, life })
    }
}

impl Code for Span {
    fn put(&self, out: &mut Vec<u8>) {
        self.start.put(out);
        self.end.put(out);
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        let start = input.bytes_of(0..=KEY_MAX + 1)?;
        let end: Option<Bytes> = Option::parse(input)?;
        (end.as_ref().is_none_or(|end| end.len() <= KEY_MAX + 1)).then_some(Self { start, end })
    }
}

impl Code for Write {
    fn put(&self, out: &mut Vec<u8>) {
        self.key.put(out);
        self.put.put(out);
        self.conditions.put(out);
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        let key = input.key()?;
        Some(Self { key, put: Option::parse(input)?, conditions: Conditions::parse(input)? })
    }
}

impl Code for Relation {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::Eq => 0,
            Self::Ne => 1,
            Self::Lt => 2,
            Self::Gt => 3,
        });
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some(match input.byte()? {
            0 => Self::Eq,
            1 => Self::Ne,
            2 => Self::Lt,
            3 => Self::Gt,
            _ => return None,
        })
    }
}

impl Code for Compare {
    fn put(&self, out: &mut Vec<u8>) {
        self.key.put(out);
        let mut number = |kind: u8, relation: &Relation, number: &u64| {
            out.push(kind);
            relation.put(out);
            number.put(out);
        };
        match &self.what {
            Subject::Version(relation, version) => number(1, relation, version),
            Subject::CreateRevision(relation, revision) => number(2, relation, revision),
            Subject::ModRevision(relation, revision) => number(3, relation, revision),
            Subject::Exists(exists) => {
                out.push(4);
                exists.put(out);
            }
            Subject::Value(relation, value) => {
                out.push(5);
                relation.put(out);
                value.put(out);
            }
        }
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        let key = input.key()?;
        let what = match input.byte()? {
            1 => Subject::Version(Relation::parse(input)?, u64::parse(input)?),
            2 => Subject::CreateRevision(Relation::parse(input)?, u64::parse(input)?),
            3 => Subject::ModRevision(Relation::parse(input)?, u64::parse(input)?),
            4 => Subject::Exists(bool::parse(input)?),
            5 => Subject::Value(Relation::parse(input)?, Bytes::parse(input)?),
            _ => return None,
        };
        Some(Self { key, what })
    }
}

impl Code for Op {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Put { key, content, prev } => {
                out.push(1);
                key.put(out);
                content.put(out);
                prev.put(out);
            }
            Self::Delete { span, prev } => {
                out.push(2);
                span.put(out);
                prev.put(out);
            }
            Self::Get { span, limit } => {
                out.push(3);
                span.put(out);
                limit.put(out);
            }
            Self::Grant { ttl_ms } => {
                out.push(4);
                ttl_ms.put(out);
            }
        }
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some(match input.byte()? {
            1 => Self::Put {
                key: input.key()?,
                content: Content::parse(input)?,
                prev: bool::parse(input)?,
            },
            2 => Self::Delete { span: Span::parse(input)?, prev: bool::parse(input)? },
            3 => Self::Get { span: Span::parse(input)?, limit: u64::parse(input)? },
            4 => Self::Grant { ttl_ms: u64::parse(input)? },
            _ => return None,
        })
    }
}

impl Code for Tidy {
    fn put(&self, out: &mut Vec<u8>) {
        self.expire.put(out);
        for number in [
            self.history_events,
            self.history_bytes,
            self.once_ms,
            self.once_count,
            self.once_bytes,
        ] {
            number.put(out);
        }
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some(Self {
            expire: bool::parse(input)?,
            history_events: u64::parse(input)?,
            history_bytes: u64::parse(input)?,
            once_ms: u64::parse(input)?,
            once_count: u64::parse(input)?,
            once_bytes: u64::parse(input)?,
        })
    }
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_RANGE: u8 = 3;
const TOUCH: u8 = 4;
const GRANT: u8 = 5;
const KEEP_ALIVE: u8 = 6;
const REVOKE: u8 = 7;
const LOCK: u8 = 8;
const UNLOCK: u8 = 9;
const TXN: u8 = 10;
const BATCH: u8 = 11;
const TIDY: u8 = 12;

impl Code for Command {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Put { key, value, content_type, life, conditions, prev } => {
                out.reserve(key.len() + value.len());
                out.push(PUT);
                prev.put(out);
                life.put(out);
                conditions.put(out);
                key.put(out);
                put_bytes(content_type.as_bytes(), out);
                value.put(out);
            }
            Self::Delete { key, conditions, prev } => {
                out.push(DELETE);
                prev.put(out);
                conditions.put(out);
                key.put(out);
            }
            Self::DeleteRange { span } => {
                out.push(DELETE_RANGE);
                span.put(out);
            }
            Self::Touch { key, ttl_ms, conditions } => {
                out.push(TOUCH);
                key.put(out);
                ttl_ms.put(out);
                conditions.put(out);
            }
            Self::Grant { id, ttl_ms } => {
                out.push(GRANT);
                id.put(out);
                ttl_ms.put(out);
            }
            Self::KeepAlive { ids } => {
                out.push(KEEP_ALIVE);
                ids.put(out);
            }
            Self::Revoke { id } => {
                out.push(REVOKE);
                id.put(out);
            }
            Self::Lock { name, lease, ttl_ms, owner, queue } => {
                out.push(LOCK);
                name.put(out);
                lease.put(out);
                ttl_ms.put(out);
                put_bytes(owner.as_bytes(), out);
                queue.put(out);
            }
            Self::Unlock { name, ticket } => {
                out.push(UNLOCK);
                name.put(out);
                ticket.put(out);
            }
            Self::Txn(txn) => {
                out.push(TXN);
                txn.compares.put(out);
                txn.then.put(out);
                txn.otherwise.put(out);
            }
            Self::Batch(writes) => {
                out.push(BATCH);
                writes.put(out);
            }
            Self::Tidy(tidy) => {
                out.push(TIDY);
                tidy.put(out);
            }
        }
    }

    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some(match input.byte()? {
            PUT => {
                let prev = bool::parse(input)?;
                let life = Life::parse(input)?;
                let conditions = Conditions::parse(input)?;
                let key = input.key()?;
                let content_type = input.text(CONTENT_TYPE_MAX)?;
                let value = Bytes::parse(input)?;
                Self::Put { key, value, content_type, life, conditions, prev }
            }
            DELETE => {
                let prev = bool::parse(input)?;
                let conditions = Conditions::parse(input)?;
                Self::Delete { key: input.key()?, conditions, prev }
            }
            DELETE_RANGE => Self::DeleteRange { span: Span::parse(input)? },
            TOUCH => Self::Touch {
                key: input.key()?,
                ttl_ms: Option::parse(input)?,
                conditions: Conditions::parse(input)?,
            },
            GRANT => Self::Grant { id: u64::parse(input)?, ttl_ms: u64::parse(input)? },
            KEEP_ALIVE => Self::KeepAlive { ids: Vec::parse(input)? },
            REVOKE => Self::Revoke { id: u64::parse(input)? },
            LOCK => Self::Lock {
                name: input.bytes_of(1..=LOCK_NAME_MAX)?,
                lease: u64::parse(input)?,
                ttl_ms: u64::parse(input)?,
                owner: input.text(OWNER_MAX)?,
                queue: bool::parse(input)?,
            },
            UNLOCK => Self::Unlock {
                name: input.bytes_of(1..=LOCK_NAME_MAX)?,
                ticket: u64::parse(input)?,
            },
            TXN => Self::Txn(Txn {
                compares: Vec::parse(input)?,
                then: Vec::parse(input)?,
                otherwise: Vec::parse(input)?,
            }),
            BATCH => Self::Batch(Vec::parse(input)?),
            TIDY => Self::Tidy(Tidy::parse(input)?),
            _ => return None,
        })
    }
}

impl Command {
    /// The payload of a log entry for this command and nothing else.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(64);
        self.put(&mut out);
        out.into()
    }
}

/// Where a payload begins with an [`Once`] or a [`Fence`], before its command.
const ONCE: u8 = 64;
const FENCE: u8 = 65;

impl Request {
    /// The payload of a log entry.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(64);
        if let Some(Once { key, fingerprint }) = &self.once {
            out.push(ONCE);
            key.put(&mut out);
            fingerprint.put(&mut out);
        }
        if let Some(Fence { name, token }) = &self.fence {
            out.push(FENCE);
            name.put(&mut out);
            token.put(&mut out);
        }
        self.command.put(&mut out);
        out.into()
    }

    /// Reads a payload without copying keys and values; `None`: it is not a request.
    #[must_use]
    pub fn decode(payload: &Bytes) -> Option<Self> {
        let mut input = Input { all: payload, at: 0 };
        let (mut once, mut fence) = (None, None);
        if payload.first() == Some(&ONCE) {
            input.at += 1;
            let key = input.bytes_of(1..=ONCE_MAX)?;
            once = Some(Once { key, fingerprint: u128::parse(&mut input)? });
        }
        if payload.get(input.at) == Some(&FENCE) {
            input.at += 1;
            let name = input.bytes_of(1..=LOCK_NAME_MAX)?;
            fence = Some(Fence { name, token: u64::parse(&mut input)? });
        }
        let command = Command::parse(&mut input)?;
        (input.at == payload.len()).then_some(Self { once, fence, command })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Content {
        Content {
            value: Bytes::from_static(b"\0v"),
            content_type: "text/plain".into(),
            life: Life::NewLease,
        }
    }

    fn commands() -> Vec<Command> {
        let key = Bytes::from_static(b"\xff\x00a");
        let conditions = Conditions {
            if_match: Some(Tags::Revisions(vec![7, 9])),
            if_none_match: Some(Tags::Any),
        };
        let span = Span::prefix(b"tmp/");
        let compare = |what| Compare { key: key.clone(), what };
        vec![
            Command::Put {
                key: key.clone(),
                value: Bytes::new(),
                content_type: "text/plain".into(),
                life: Life::Ttl(30_000),
                conditions: conditions.clone(),
                prev: true,
            },
            Command::Delete { key: key.clone(), conditions: conditions.clone(), prev: false },
            Command::DeleteRange { span: span.clone() },
            Command::Touch { key: key.clone(), ttl_ms: Some(1), conditions: conditions.clone() },
            Command::Grant { id: 0, ttl_ms: 5 },
            Command::KeepAlive { ids: vec![1, 2] },
            Command::Revoke { id: 9 },
            Command::Lock {
                name: key.clone(),
                lease: 3,
                ttl_ms: 4,
                owner: "me".into(),
                queue: true,
            },
            Command::Unlock { name: key.clone(), ticket: 3 },
            Command::Txn(Txn {
                compares: vec![
                    compare(Subject::Exists(false)),
                    compare(Subject::Value(Relation::Ne, Bytes::from_static(b"x"))),
                    compare(Subject::Version(Relation::Lt, 3)),
                    compare(Subject::CreateRevision(Relation::Gt, 4)),
                    compare(Subject::ModRevision(Relation::Eq, 5)),
                ],
                then: vec![
                    Op::Grant { ttl_ms: 9 },
                    Op::Put { key: key.clone(), content: content(), prev: true },
                    Op::Delete { span: span.clone(), prev: false },
                ],
                otherwise: vec![Op::Get { span, limit: 7 }],
            }),
            Command::Batch(vec![
                Write { key: key.clone(), put: Some(content()), conditions },
                Write { key, put: None, conditions: Conditions::default() },
            ]),
            Command::Tidy(Tidy { expire: true, once_ms: 3, ..Tidy::default() }),
        ]
    }

    #[test]
    fn commands_survive_their_encoding_and_no_prefix_is_one() {
        let once = Once { key: Bytes::from_static(b"again"), fingerprint: 1 << 100 };
        let fence = Fence { name: Bytes::from_static(b"jobs"), token: 4 };
        for command in commands() {
            for (once, fence) in [(None, None), (Some(once.clone()), Some(fence.clone()))] {
                let request = Request { once, fence, command: command.clone() };
                let bytes = request.encode();
                assert_eq!(Request::decode(&bytes), Some(request));
                for cut in 0..bytes.len() {
                    assert_eq!(Request::decode(&bytes.slice(..cut)), None, "cut at {cut}");
                }
            }
        }
    }
}

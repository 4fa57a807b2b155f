//! The bytes of commands in log entries, and of their outcomes between nodes.
//!
//! Everything is a sequence of little-endian numbers, flags of one byte, and strings behind
//! their length (u32); what has several shapes begins with one byte that says which. Decoders
//! are total: any bytes give a value or `None`, and nothing is left over.

use bytes::Bytes;

use super::command::{
    Applied, CONTENT_TYPE_MAX, Command, Compare, Conditions, Content, Fence, Granted, KEY_MAX,
    LOCK_NAME_MAX, Life, ONCE_MAX, OWNER_MAX, Once, Op, OpResult, Relation, Request, Span, Subject,
    Tags, Tidy, Txn, Write, Written,
};
use super::record::{OwnedRecord, Record};

/// A value with bytes of its own.
trait Code: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn parse(input: &mut Input<'_>) -> Option<Self>;
}

/// What is left of some bytes; every step checks that there is enough.
struct Input<'a> {
    all: &'a Bytes,
    at: usize,
}

impl Input<'_> {
    fn raw(&mut self, len: usize) -> Option<Bytes> {
        let end = self.at.checked_add(len)?;
        if end > self.all.len() {
            return None;
        }
        let bytes = self.all.slice(self.at..end);
        self.at = end;
        Some(bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.all.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// A key: 1 to [`KEY_MAX`] bytes.
    fn key(&mut self) -> Option<Bytes> {
        self.bytes_of(1..=KEY_MAX)
    }

    fn bytes_of(&mut self, len: std::ops::RangeInclusive<usize>) -> Option<Bytes> {
        Bytes::parse(self).filter(|bytes| len.contains(&bytes.len()))
    }

    fn text(&mut self, most: usize) -> Option<String> {
        String::from_utf8(self.bytes_of(0..=most)?.to_vec()).ok()
    }
}

/// Reads a whole value.
fn whole<T: Code>(bytes: &Bytes) -> Option<T> {
    let mut input = Input { all: bytes, at: 0 };
    let value = T::parse(&mut input)?;
    (input.at == bytes.len()).then_some(value)
}

impl Code for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some(Self::from_le_bytes(*input.raw(8)?.first_chunk()?))
    }
}

impl Code for u128 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some(Self::from_le_bytes(*input.raw(16)?.first_chunk()?))
    }
}

impl Code for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        match input.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Code for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self, out);
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        let len = u32::from_le_bytes(*input.raw(4)?.first_chunk()?);
        input.raw(usize::try_from(len).ok()?)
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    let len = u32::try_from(bytes.len()).expect("values are far below 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}

impl<T: Code> Code for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some(if bool::parse(input)? { Some(T::parse(input)?) } else { None })
    }
}

impl<T: Code> Code for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        for item in self {
            item.put(out);
        }
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        let count = usize::try_from(u64::parse(input)?).ok()?;
        // Every item has a byte at least, so a forged count asks for no memory.
        if count > input.all.len() - input.at {
            return None;
        }
        (0..count).map(|_| T::parse(input)).collect()
    }
}

impl<A: Code, B: Code> Code for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some((A::parse(input)?, B::parse(input)?))
    }
}

impl Code for OwnedRecord {
    fn put(&self, out: &mut Vec<u8>) {
        let mut bytes = Vec::new();
        self.as_record().encode(&mut bytes);
        put_bytes(&bytes, out);
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        let bytes = Bytes::parse(input)?;
        Record::decode(&bytes).map(|record| record.to_owned())
    }
}

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

impl Code for Written {
    fn put(&self, out: &mut Vec<u8>) {
        for number in [self.revision, self.create_revision, self.version, self.lease, self.ttl_ms] {
            number.put(out);
        }
        self.prev.put(out);
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some(Self {
            revision: u64::parse(input)?,
            create_revision: u64::parse(input)?,
            version: u64::parse(input)?,
            lease: u64::parse(input)?,
            ttl_ms: u64::parse(input)?,
            prev: Option::parse(input)?,
        })
    }
}

impl Code for Granted {
    fn put(&self, out: &mut Vec<u8>) {
        self.id.put(out);
        self.ttl_ms.put(out);
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some(Self { id: u64::parse(input)?, ttl_ms: u64::parse(input)? })
    }
}

impl Code for OpResult {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Put(written) => {
                out.push(1);
                written.put(out);
            }
            Self::Deleted { deleted, prev } => {
                out.push(2);
                deleted.put(out);
                prev.put(out);
            }
            Self::Got { items, more } => {
                out.push(3);
                items.put(out);
                more.put(out);
            }
            Self::Granted(granted) => {
                out.push(4);
                granted.put(out);
            }
        }
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Some(match input.byte()? {
            1 => Self::Put(Written::parse(input)?),
            2 => Self::Deleted { deleted: u64::parse(input)?, prev: Vec::parse(input)? },
            3 => Self::Got { items: Vec::parse(input)?, more: bool::parse(input)? },
            4 => Self::Granted(Granted::parse(input)?),
            _ => return None,
        })
    }
}

/// No outcome lies deeper in others: a replayed batch of writes is three.
const DEPTH_MAX: usize = 3;

impl Applied {
    /// The answer's bytes between nodes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(64);
        self.put(&mut out);
        out.into()
    }

    /// Reads an answer; `None`: it is none.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        whole::<Outermost>(bytes).map(|outermost| outermost.0)
    }

    fn put(&self, out: &mut Vec<u8>) {
        let mut numbers = |kind: u8, numbers: &[u64]| {
            out.push(kind);
            for number in numbers {
                number.put(out);
            }
        };
        match self {
            Self::Put(written) => {
                out.push(1);
                written.put(out);
            }
            Self::Deleted { deleted, revision, prev } => {
                numbers(2, &[*deleted, *revision]);
                prev.put(out);
            }
            Self::ConditionFailed { current } => {
                out.push(3);
                current.put(out);
            }
            Self::Unknown => out.push(4),
            Self::Touched { mod_revision, lease, ttl_ms } => {
                numbers(5, &[*mod_revision, *lease]);
                ttl_ms.put(out);
            }
            Self::Granted(granted) => {
                out.push(6);
                granted.put(out);
            }
            Self::KeptAlive { ttls_ms } => {
                out.push(7);
                ttls_ms.put(out);
            }
            Self::Revoked { deleted, revision } => numbers(8, &[*deleted, *revision]),
            Self::Locked { ticket, token, lease } => {
                numbers(9, &[*ticket, *lease]);
                token.put(out);
            }
            Self::Held { token } => numbers(10, &[*token]),
            Self::Unlocked { revision } => numbers(11, &[*revision]),
            Self::Txn { succeeded, revision, results } => {
                numbers(12, &[*revision]);
                succeeded.put(out);
                results.put(out);
            }
            Self::Batch { outcomes } => {
                numbers(13, &[outcomes.len() as u64]);
                for outcome in outcomes {
                    outcome.put(out);
                }
            }
            Self::Tidied { more } => {
                out.push(14);
                more.put(out);
            }
            Self::NoKey => out.push(15),
            Self::NoLease { id } => numbers(16, &[*id]),
            Self::LeaseExists { id } => numbers(17, &[*id]),
            Self::NoLock => out.push(18),
            Self::Fenced { current } => {
                out.push(19);
                current.put(out);
            }
            Self::OtherRequest => out.push(20),
            Self::TooMany { actual } => numbers(21, &[*actual]),
            Self::Replayed(first) => {
                out.push(22);
                first.put(out);
            }
        }
    }

    fn parse(input: &mut Input<'_>, depth: usize) -> Option<Self> {
        let deeper = depth.checked_sub(1)?;
        Some(match input.byte()? {
            1 => Self::Put(Written::parse(input)?),
            2 => Self::Deleted {
                deleted: u64::parse(input)?,
                revision: u64::parse(input)?,
                prev: Option::parse(input)?,
            },
            3 => Self::ConditionFailed { current: Option::parse(input)? },
            4 => Self::Unknown,
            5 => {
                let (mod_revision, lease) = (u64::parse(input)?, u64::parse(input)?);
                Self::Touched { mod_revision, lease, ttl_ms: Option::parse(input)? }
            }
            6 => Self::Granted(Granted::parse(input)?),
            7 => Self::KeptAlive { ttls_ms: Vec::parse(input)? },
            8 => Self::Revoked { deleted: u64::parse(input)?, revision: u64::parse(input)? },
            9 => {
                let (ticket, lease) = (u64::parse(input)?, u64::parse(input)?);
                Self::Locked { ticket, token: Option::parse(input)?, lease }
            }
            10 => Self::Held { token: u64::parse(input)? },
            11 => Self::Unlocked { revision: u64::parse(input)? },
            12 => {
                let (revision, succeeded) = (u64::parse(input)?, bool::parse(input)?);
                Self::Txn { succeeded, revision, results: Vec::parse(input)? }
            }
            13 => {
                let count = usize::try_from(u64::parse(input)?).ok()?;
                if count > input.all.len() - input.at {
                    return None;
                }
                let outcomes =
                    (0..count).map(|_| Self::parse(input, deeper)).collect::<Option<_>>();
                Self::Batch { outcomes: outcomes? }
            }
            14 => Self::Tidied { more: bool::parse(input)? },
            15 => Self::NoKey,
            16 => Self::NoLease { id: u64::parse(input)? },
            17 => Self::LeaseExists { id: u64::parse(input)? },
            18 => Self::NoLock,
            19 => Self::Fenced { current: Option::parse(input)? },
            20 => Self::OtherRequest,
            21 => Self::TooMany { actual: u64::parse(input)? },
            22 => Self::Replayed(Box::new(Self::parse(input, deeper)?)),
            _ => return None,
        })
    }
}

struct Outermost(Applied);

impl Code for Outermost {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        Applied::parse(input, DEPTH_MAX).map(Self)
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

    #[test]
    fn answers_survive_their_encoding() {
        let record = OwnedRecord {
            create_revision: 1,
            mod_revision: 2,
            version: 2,
            lease: 0,
            expiry_ms: 0,
            content_type: String::new(),
            value: Bytes::from_static(b"old"),
        };
        let written = Written {
            revision: 6,
            create_revision: 5,
            version: 2,
            lease: 3,
            ttl_ms: 4,
            prev: Some(record.clone()),
        };
        let granted = Granted { id: 3, ttl_ms: 9 };
        let item = (Bytes::from_static(b"k"), record.clone());
        let all = vec![
            Applied::Put(written.clone()),
            Applied::Deleted { deleted: 1, revision: 7, prev: Some(record) },
            Applied::ConditionFailed { current: None },
            Applied::ConditionFailed { current: Some(6) },
            Applied::Touched { mod_revision: 4, lease: 6, ttl_ms: Some(3) },
            Applied::Granted(granted),
            Applied::KeptAlive { ttls_ms: vec![None, Some(3)] },
            Applied::Revoked { deleted: 4, revision: 5 },
            Applied::Locked { ticket: 3, token: Some(4), lease: 5 },
            Applied::Held { token: 4 },
            Applied::Unlocked { revision: 9 },
            Applied::Txn {
                succeeded: true,
                revision: 9,
                results: vec![
                    OpResult::Put(written),
                    OpResult::Deleted { deleted: 1, prev: vec![item.clone()] },
                    OpResult::Got { items: vec![item], more: true },
                    OpResult::Granted(granted),
                ],
            },
            Applied::Tidied { more: true },
            Applied::NoKey,
            Applied::NoLease { id: 4 },
            Applied::LeaseExists { id: 4 },
            Applied::NoLock,
            Applied::Fenced { current: Some(3) },
            Applied::OtherRequest,
            Applied::TooMany { actual: 100_001 },
            Applied::Unknown,
        ];
        let batch = Applied::Batch { outcomes: all.clone() };
        let replayed = Applied::Replayed(Box::new(batch.clone()));
        for applied in all.into_iter().chain([batch, replayed.clone()]) {
            let bytes = applied.encode();
            for cut in 0..bytes.len() {
                assert_eq!(Applied::decode(&bytes.slice(..cut)), None, "cut at {cut}");
            }
            assert_eq!(Applied::decode(&bytes), Some(applied));
        }
        let deep = Applied::Replayed(Box::new(Applied::Replayed(Box::new(replayed))));
        assert_eq!(Applied::decode(&deep.encode()), None, "nobody makes such a thing");
    }
}

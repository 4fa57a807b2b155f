//! What clients ask the state machine to do, and what it answers, with their bytes in log
//! entries and between nodes. Decoders are total.

use bytes::Bytes;

use super::record::{OwnedRecord, Record};

/// Largest key in bytes.
pub const KEY_MAX: usize = 4096;
/// Largest content type in bytes.
pub const CONTENT_TYPE_MAX: usize = 255;

/// One change, decided when it is applied: the same on every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Write a key.
    Put {
        /// 1 to [`KEY_MAX`] bytes.
        key: Bytes,
        /// Any bytes up to the configured limit.
        value: Bytes,
        /// Content type, at most [`CONTENT_TYPE_MAX`] bytes; empty: none.
        content_type: String,
        /// When it may happen.
        conditions: Conditions,
        /// Answer with what was there before.
        prev: bool,
    },
    /// Remove a key; removing what is not there is a success.
    Delete {
        /// 1 to [`KEY_MAX`] bytes.
        key: Bytes,
        /// When it may happen.
        conditions: Conditions,
        /// Answer with what was there before.
        prev: bool,
    },
}

/// `If-Match` and `If-None-Match` (RFC 9110, 13.1), judged when the entry is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The key must be at one of these.
    pub if_match: Option<Tags>,
    /// The key must be at none of these.
    pub if_none_match: Option<Tags>,
}

/// The right side of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tags {
    /// `*`: any existing value.
    Any,
    /// Modification revisions. Tags that no revision can have are left out by the edge, so
    /// the list may be empty: then nothing matches.
    Revisions(Vec<u64>),
}

impl Tags {
    fn matches(&self, current: Option<u64>) -> bool {
        match (self, current) {
            (Self::Any, current) => current.is_some(),
            (Self::Revisions(list), Some(revision)) => list.contains(&revision),
            (Self::Revisions(_), None) => false,
        }
    }
}

impl Conditions {
    /// Do they hold for a key at this modification revision (`None`: no such key)?
    #[must_use]
    pub fn hold(&self, current: Option<u64>) -> bool {
        self.if_match.as_ref().is_none_or(|tags| tags.matches(current))
            && self.if_none_match.as_ref().is_none_or(|tags| !tags.matches(current))
    }
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The key was written.
    Put {
        /// The revision of the change.
        revision: u64,
        /// Of the key's creation; equals `revision` when it was created now.
        create_revision: u64,
        /// Writes since its creation.
        version: u64,
        /// What was there before, when it was asked for and there was something.
        prev: Option<OwnedRecord>,
    },
    /// The key is gone.
    Deleted {
        /// How many keys were removed: 0 or 1.
        deleted: u64,
        /// The revision of the change, or the store's when nothing was there.
        revision: u64,
        /// What was there before, when it was asked for and there was something.
        prev: Option<OwnedRecord>,
    },
    /// A condition did not hold; nothing was changed.
    ConditionFailed {
        /// The key's modification revision; `None`: there is no such key.
        current: Option<u64>,
    },
    /// The entry could not be understood; nothing was changed. Only a newer program's
    /// entry does this.
    Unknown,
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const FAILED: u8 = 3;
const UNKNOWN: u8 = 4;

impl Command {
    /// The key it is about.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// The payload of a log entry.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(64);
        match self {
            Self::Put { key, value, content_type, conditions, prev } => {
                out.reserve(key.len() + value.len());
                out.extend_from_slice(&[PUT, u8::from(*prev)]);
                encode_conditions(conditions, &mut out);
                put_bytes(&mut out, key);
                put_bytes(&mut out, content_type.as_bytes());
                put_bytes(&mut out, value);
            }
            Self::Delete { key, conditions, prev } => {
                out.extend_from_slice(&[DELETE, u8::from(*prev)]);
                encode_conditions(conditions, &mut out);
                put_bytes(&mut out, key);
            }
        }
        out.into()
    }

    /// Reads a payload without copying keys and values; `None`: it is not a command.
    #[must_use]
    pub fn decode(payload: &Bytes) -> Option<Self> {
        let mut input = Input { all: payload, at: 0 };
        let kind = input.byte()?;
        let prev = input.flag()?;
        let conditions = decode_conditions(&mut input)?;
        let key = input.bytes()?;
        let command = match kind {
            PUT => {
                let content_type = String::from_utf8(input.bytes()?.to_vec()).ok()?;
                Self::Put { key, content_type, value: input.bytes()?, conditions, prev }
            }
            DELETE => Self::Delete { key, conditions, prev },
            _ => return None,
        };
        let sound = input.at == payload.len()
            && (1..=KEY_MAX).contains(&command.key().len())
            && !matches!(&command, Self::Put { content_type, .. } if content_type.len() > CONTENT_TYPE_MAX);
        sound.then_some(command)
    }
}

impl Applied {
    /// The answer's bytes between nodes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(64);
        match self {
            Self::Put { revision, create_revision, version, prev } => {
                out.push(PUT);
                for number in [revision, create_revision, version] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                encode_prev(prev.as_ref(), &mut out);
            }
            Self::Deleted { deleted, revision, prev } => {
                out.push(DELETE);
                for number in [deleted, revision] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                encode_prev(prev.as_ref(), &mut out);
            }
            Self::ConditionFailed { current } => {
                out.extend_from_slice(&[FAILED, u8::from(current.is_some())]);
                out.extend_from_slice(&current.unwrap_or(0).to_le_bytes());
            }
            Self::Unknown => out.push(UNKNOWN),
        }
        out.into()
    }

    /// Reads an answer; `None`: it is none.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let mut input = Input { all: bytes, at: 0 };
        let applied = match input.byte()? {
            PUT => Self::Put {
                revision: input.number()?,
                create_revision: input.number()?,
                version: input.number()?,
                prev: decode_prev(&mut input)?,
            },
            DELETE => Self::Deleted {
                deleted: input.number()?,
                revision: input.number()?,
                prev: decode_prev(&mut input)?,
            },
            FAILED => {
                let known = input.flag()?;
                let current = input.number()?;
                if !known && current != 0 {
                    return None;
                }
                Self::ConditionFailed { current: known.then_some(current) }
            }
            UNKNOWN => Self::Unknown,
            _ => return None,
        };
        (input.at == bytes.len()).then_some(applied)
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("values are far below 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}

fn encode_conditions(conditions: &Conditions, out: &mut Vec<u8>) {
    for tags in [&conditions.if_match, &conditions.if_none_match] {
        match tags {
            None => out.push(0),
            Some(Tags::Any) => out.push(1),
            Some(Tags::Revisions(list)) => {
                out.push(2);
                let list: Vec<u8> =
                    list.iter().flat_map(|revision| revision.to_le_bytes()).collect();
                put_bytes(out, &list);
            }
        }
    }
}

fn decode_conditions(input: &mut Input<'_>) -> Option<Conditions> {
    let mut tags = || {
        Some(match input.byte()? {
            0 => None,
            1 => Some(Tags::Any),
            2 => {
                let bytes = input.bytes()?;
                let (numbers, rest) = bytes.as_chunks::<8>();
                if !rest.is_empty() {
                    return None;
                }
                Some(Tags::Revisions(numbers.iter().map(|n| u64::from_le_bytes(*n)).collect()))
            }
            _ => return None,
        })
    };
    Some(Conditions { if_match: tags()?, if_none_match: tags()? })
}

fn encode_prev(prev: Option<&OwnedRecord>, out: &mut Vec<u8>) {
    out.push(u8::from(prev.is_some()));
    if let Some(record) = prev {
        record.as_record().encode(out);
    }
}

fn decode_prev(input: &mut Input<'_>) -> Option<Option<OwnedRecord>> {
    if !input.flag()? {
        return Some(None);
    }
    let rest = input.all.slice(input.at..);
    input.at = input.all.len();
    Some(Some(Record::decode(&rest)?.to_owned()))
}

/// What is left of some bytes; every step checks that there is enough.
struct Input<'a> {
    all: &'a Bytes,
    at: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.all.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<u64> {
        let bytes = self.all.get(self.at..self.at.checked_add(8)?)?;
        self.at += 8;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let len = self.all.get(self.at..self.at.checked_add(4)?)?;
        let len = usize::try_from(u32::from_le_bytes(len.try_into().ok()?)).ok()?;
        let start = self.at + 4;
        let end = start.checked_add(len)?;
        if end > self.all.len() {
            return None;
        }
        self.at = end;
        Some(self.all.slice(start..end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands() -> Vec<Command> {
        let conditions = Conditions {
            if_match: Some(Tags::Revisions(vec![7, 9])),
            if_none_match: Some(Tags::Any),
        };
        vec![
            Command::Put {
                key: Bytes::from_static(b"\xff\x00a"),
                value: Bytes::new(),
                content_type: "text/plain".into(),
                conditions: conditions.clone(),
                prev: true,
            },
            Command::Delete { key: Bytes::from_static(b"k"), conditions, prev: false },
        ]
    }

    #[test]
    fn commands_survive_their_encoding_and_no_prefix_is_one() {
        for command in commands() {
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes), Some(command));
            for cut in 0..bytes.len() {
                assert_eq!(Command::decode(&bytes.slice(..cut)), None, "cut at {cut}");
            }
        }
    }

    #[test]
    fn answers_survive_their_encoding() {
        let prev = OwnedRecord {
            create_revision: 1,
            mod_revision: 2,
            version: 2,
            lease: 0,
            expiry_ms: 0,
            content_type: String::new(),
            value: Bytes::from_static(b"old"),
        };
        for applied in [
            Applied::Put { revision: 5, create_revision: 5, version: 1, prev: None },
            Applied::Put { revision: 6, create_revision: 5, version: 2, prev: Some(prev.clone()) },
            Applied::Deleted { deleted: 1, revision: 7, prev: Some(prev) },
            Applied::ConditionFailed { current: None },
            Applied::ConditionFailed { current: Some(6) },
            Applied::Unknown,
        ] {
            assert_eq!(Applied::decode(&applied.encode()), Some(applied));
        }
    }

    #[test]
    fn conditions_follow_rfc_9110() {
        let revisions = |list: &[u64]| Some(Tags::Revisions(list.to_vec()));
        for (if_match, if_none_match, current, want, why) in [
            (None, None, None, true, "no condition always holds"),
            (Some(Tags::Any), None, None, false, "If-Match: * needs the key"),
            (Some(Tags::Any), None, Some(3), true, "If-Match: * and it is there"),
            (revisions(&[3]), None, Some(3), true, "the same revision"),
            (revisions(&[3]), None, Some(4), false, "another revision"),
            (revisions(&[]), None, Some(4), false, "a tag that is no revision never matches"),
            (None, Some(Tags::Any), None, true, "create only, and it is not there"),
            (None, Some(Tags::Any), Some(4), false, "create only, and it is there"),
            (None, revisions(&[4]), Some(4), false, "none of these, and it is one"),
            (None, revisions(&[4]), Some(5), true, "none of these, and it is another"),
        ] {
            let conditions = Conditions { if_match, if_none_match };
            assert_eq!(conditions.hold(current), want, "{why}");
        }
    }
}

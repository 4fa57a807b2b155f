//! The bytes of outcomes, between nodes and where they are kept for those who ask again.

use bytes::Bytes;

use super::code::{Code, Input, whole};
use super::command::{Applied, Granted, OpResult, Written};

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
    use crate::machine::OwnedRecord;

    #[test]
    fn answers_survive_their_encoding() {
        let record = OwnedRecord {
            create_revision: 1,
            mod_revision: 2,
            nth: 3,
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

//! Values as bytes, in log entries and between nodes.
//!
//! Everything is a sequence of little-endian numbers, flags of one byte, and strings behind
//! their length (u32); what has several shapes begins with one byte that says which. Decoders
//! are total: any bytes give a value or `None`, and nothing is left over.

use bytes::Bytes;

use super::command::KEY_MAX;
use super::record::{OwnedRecord, Record};

/// A value with bytes of its own.
pub(super) trait Code: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn parse(input: &mut Input<'_>) -> Option<Self>;
}

/// What is left of some bytes; every step checks that there is enough.
pub(super) struct Input<'a> {
    pub(super) all: &'a Bytes,
    pub(super) at: usize,
}

impl Input<'_> {
    pub(super) fn raw(&mut self, len: usize) -> Option<Bytes> {
        let end = self.at.checked_add(len)?;
        if end > self.all.len() {
            return None;
        }
        let bytes = self.all.slice(self.at..end);
        self.at = end;
        Some(bytes)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let byte = *self.all.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// A key: 1 to [`KEY_MAX`] bytes.
    pub(super) fn key(&mut self) -> Option<Bytes> {
        self.bytes_of(1..=KEY_MAX)
    }

    pub(super) fn bytes_of(&mut self, len: std::ops::RangeInclusive<usize>) -> Option<Bytes> {
        Bytes::parse(self).filter(|bytes| len.contains(&bytes.len()))
    }

    pub(super) fn text(&mut self, most: usize) -> Option<String> {
        String::from_utf8(self.bytes_of(0..=most)?.to_vec()).ok()
    }
}

/// Reads a whole value.
pub(super) fn whole<T: Code>(bytes: &Bytes) -> Option<T> {
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

pub(super) fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
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

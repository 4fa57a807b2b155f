//! What the database keeps under a key: metadata, then the value.
//!
//! Little-endian:
//!
//! | bytes  | field | meaning |
//! |--------|-------|---------|
//! | 0      | format | 1 |
//! | 1      | type length | bytes of content type, 0: none was given |
//! | 2..4   | zero | |
//! | 4..8   | number | of the change of that revision that wrote it |
//! | 8..16  | create revision | of the entry that created the key |
//! | 16..24 | mod revision | of the entry that last wrote it |
//! | 24..32 | version | writes since its creation |
//! | 32..40 | lease | 0: none |
//! | 40..48 | expiry | milliseconds of the replicated clock, 0: never |
//! | 48..   | content type, then the value | |

/// Bytes before the content type.
const HEADER: usize = 48;
const FORMAT: u8 = 1;

/// A key's value with all that is known of it, borrowed from the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Revision that created the key.
    pub create_revision: u64,
    /// Revision that last wrote it.
    pub mod_revision: u64,
    /// Which of the changes of that revision did, from 0 on.
    pub nth: u32,
    /// Writes since its creation, 1 for the first.
    pub version: u64,
    /// The lease it hangs on; 0: none.
    pub lease: u64,
    /// When it expires, in milliseconds of the replicated clock; 0: never.
    pub expiry_ms: u64,
    /// As given when it was written; empty: none was.
    pub content_type: &'a str,
    /// The bytes.
    pub value: &'a [u8],
}

impl<'a> Record<'a> {
    /// Appends the stored form.
    ///
    /// # Panics
    /// When the content type is longer than 255 bytes; commands are checked before.
    pub fn encode(&self, into: &mut Vec<u8>) {
        let type_len = u8::try_from(self.content_type.len()).expect("checked when proposed");
        into.reserve(HEADER + self.content_type.len() + self.value.len());
        into.extend_from_slice(&[FORMAT, type_len, 0, 0]);
        into.extend_from_slice(&self.nth.to_le_bytes());
        for number in
            [self.create_revision, self.mod_revision, self.version, self.lease, self.expiry_ms]
        {
            into.extend_from_slice(&number.to_le_bytes());
        }
        into.extend_from_slice(self.content_type.as_bytes());
        into.extend_from_slice(self.value);
    }

    /// Reads the stored form; `None`: these bytes are not a record.
    #[must_use]
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_at_checked(HEADER)?;
        let number = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
        if *header.first()? != FORMAT || header.get(2..4)? != [0, 0] {
            return None;
        }
        let (content_type, value) = rest.split_at_checked(usize::from(*header.get(1)?))?;
        Some(Self {
            create_revision: number(8)?,
            mod_revision: number(16)?,
            nth: u32::from_le_bytes(*header.get(4..)?.first_chunk()?),
            version: number(24)?,
            lease: number(32)?,
            expiry_ms: number(40)?,
            content_type: std::str::from_utf8(content_type).ok()?,
            value,
        })
    }

    /// Where the history has the event that wrote it.
    pub(super) fn written_at(&self) -> (u64, u32) {
        (self.mod_revision, self.nth)
    }

    /// A copy that outlives the snapshot.
    #[must_use]
    pub fn to_owned(&self) -> OwnedRecord {
        OwnedRecord {
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            nth: self.nth,
            version: self.version,
            lease: self.lease,
            expiry_ms: self.expiry_ms,
            content_type: self.content_type.to_owned(),
            value: bytes::Bytes::copy_from_slice(self.value),
        }
    }
}

/// A [`Record`] of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRecord {
    /// See [`Record::create_revision`].
    pub create_revision: u64,
    /// See [`Record::mod_revision`].
    pub mod_revision: u64,
    /// See [`Record::nth`].
    pub nth: u32,
    /// See [`Record::version`].
    pub version: u64,
    /// See [`Record::lease`].
    pub lease: u64,
    /// See [`Record::expiry_ms`].
    pub expiry_ms: u64,
    /// See [`Record::content_type`].
    pub content_type: String,
    /// See [`Record::value`].
    pub value: bytes::Bytes,
}

impl OwnedRecord {
    /// The borrowed form.
    #[must_use]
    pub fn as_record(&self) -> Record<'_> {
        Record {
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            nth: self.nth,
            version: self.version,
            lease: self.lease,
            expiry_ms: self.expiry_ms,
            content_type: &self.content_type,
            value: &self.value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_encoding() {
        let record = Record {
            create_revision: 3,
            mod_revision: 9,
            nth: 4,
            version: 2,
            lease: 0,
            expiry_ms: 77,
            content_type: "text/plain",
            value: b"blue",
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(Record::decode(&bytes), Some(record));
        for cut in 0..HEADER + record.content_type.len() {
            assert_eq!(Record::decode(&bytes[..cut]), None, "a record cut at {cut} is none");
        }
    }
}

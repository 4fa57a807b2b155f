//! A few bytes in a file of their own, written once and whole or not at all.
//!
//! `MMNT`, the length and the CRC-32C of the bytes, then the bytes. The name appears only
//! after the content is durable.

use std::path::Path;

use super::disk::{Disk, FileKind, parent};
use super::error::StoreError;

const MAGIC: &[u8; 4] = b"MMNT";
const HEADER: usize = 12;
/// A note is small.
const MAX: u64 = 64 << 10;

/// Writes the note; it is durable when this returns.
///
/// # Errors
/// `Io`.
pub fn write_note(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = Path::new(&unfinished);
    let dir = parent(path);
    disk.make_dir(&dir)?;
    if disk.open(unfinished, FileKind::Db, MAX)?.is_some() {
        disk.remove(unfinished)?;
    }
    let region = disk.create(unfinished, FileKind::Db, MAX)?;
    let mut whole = Vec::with_capacity(HEADER + bytes.len());
    whole.extend_from_slice(MAGIC);
    whole.extend(u32::try_from(bytes.len()).expect("a note is small").to_le_bytes());
    whole.extend(crc32c::crc32c(bytes).to_le_bytes());
    whole.extend_from_slice(bytes);
    region.write_at(0, &whole)?;
    region.sync_all()?;
    disk.rename(unfinished, path)?;
    disk.sync_dir(&dir)
}

/// Reads the note; `None`: there is none.
///
/// # Errors
/// `Io`, or `Corrupt`.
pub fn read_note(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(region) = disk.open(path, FileKind::Db, MAX)? else { return Ok(None) };
    let corrupt = |why: &str| StoreError::Corrupt {
        file: path.display().to_string(),
        what: "note",
        offset: 0,
        why: why.to_owned(),
    };
    if region.len() > MAX || region.len() < HEADER as u64 {
        return Err(corrupt("of an impossible length"));
    }
    let mut whole = vec![0; usize::try_from(region.len()).map_err(|_| corrupt("too long"))?];
    region.read_at(0, &mut whole)?;
    let (head, rest) = whole.split_at(HEADER);
    let number = |at: usize| {
        head.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes)
    };
    let bytes = usize::try_from(number(4)).ok().and_then(|len| rest.get(..len));
    match bytes {
        Some(bytes) if head.starts_with(MAGIC) && crc32c::crc32c(bytes) == number(8) => {
            Ok(Some(bytes.to_vec()))
        }
        Some(_) | None => Err(corrupt("not what was written")),
    }
}

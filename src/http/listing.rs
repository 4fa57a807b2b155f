//! Which keys a listing shows, in which order and as of which revision, and the cursors that
//! carry that from one answer to the next.
//!
//! The first page decides the revision, and its cursor names it: later pages show the range as
//! it was then, for as long as the history knows that.

use std::ops::Bound;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Edge;
use super::error::ApiError;
use super::extract::Query;
use crate::machine::{Item, KEY_MAX, Range, Span, View};
use crate::store::StoreError;

/// Parameters that say which keys, and what of them.
pub(super) const PARAMETERS: [&str; 14] = [
    "prefix",
    "start",
    "end",
    "delimiter",
    "limit",
    "order",
    "keys_only",
    "count_only",
    "cursor",
    "revision",
    "consistency",
    "min_revision",
    "timeout",
    "redirect",
];

/// What was asked for.
#[derive(Debug)]
pub(super) struct Wanted {
    /// All that it is about, whatever was shown already.
    pub(super) span: Span,
    /// What is left of that.
    range: Range,
    prefix: Vec<u8>,
    delimiter: Option<Vec<u8>>,
    /// Most items; `None`: it was not said.
    pub(super) limit: Option<u64>,
    pub(super) keys_only: bool,
    pub(super) count_only: bool,
    /// The revision that was asked for.
    revision: Option<u64>,
    /// The revision of the first page.
    pinned: Option<u64>,
}

/// What a listing shows.
pub(super) enum Found<'a> {
    Item(Item<'a>),
    /// Keys that begin so, up to and with the delimiter.
    Group(&'a [u8]),
}

/// Where to go on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resume {
    /// After this key, or after all keys that begin so.
    key: Vec<u8>,
    group: bool,
}

impl Wanted {
    pub(super) fn read(query: &Query) -> Result<Self, ApiError> {
        let prefix = query.bytes("prefix").unwrap_or_default().to_vec();
        let mut range = range(query, &prefix)?;
        let span = span(&range);
        let delimiter = query.bytes("delimiter").map(<[u8]>::to_vec);
        if delimiter.as_ref().is_some_and(Vec::is_empty) {
            return Err(ApiError::BadRequest("a delimiter has at least one byte".into()));
        }
        if delimiter.is_some() && range.reverse {
            return Err(ApiError::Unprocessable("delimiter goes with ascending order only".into()));
        }
        let limit = query.number("limit")?;
        if limit == Some(0) {
            return Err(ApiError::BadRequest("query parameter \"limit\" is at least 1".into()));
        }
        let revision = query.number("revision")?;
        let mut pinned = None;
        if let Some(cursor) = query.text("cursor")? {
            let cursor = Cursor::decode(cursor, range.reverse)
                .ok_or_else(|| ApiError::BadRequest("this cursor is not one of ours".into()))?;
            let bound = cursor.resume.bound();
            let same = revision.is_none_or(|revision| revision == cursor.revision);
            if !same || !continues(&range, &bound) {
                return Err(ApiError::BadRequest("this cursor is of another listing".into()));
            }
            pinned = Some(cursor.revision);
            go_on(&mut range, bound);
        }
        let (keys_only, count_only) = (query.flag("keys_only")?, query.flag("count_only")?);
        Ok(Self { span, range, prefix, delimiter, limit, keys_only, count_only, revision, pinned })
    }

    /// Calls `take` with what there was at `revision` until it refuses; says where to go on
    /// if it did.
    pub(super) fn walk(
        &self,
        view: &View,
        revision: u64,
        mut take: impl FnMut(Found<'_>) -> bool,
    ) -> Result<Option<Resume>, StoreError> {
        let mut last = Resume { key: Vec::new(), group: false };
        let mut more = false;
        view.scan_at(&self.range, revision, |item| {
            let (key, group) = (item.key, self.group_of(item.key));
            if last.group && group == Some(&last.key) {
                return true;
            }
            if !take(group.map_or(Found::Item(item), Found::Group)) {
                more = true;
                return false;
            }
            last.group = group.is_some();
            last.key.clear();
            last.key.extend_from_slice(group.unwrap_or(key));
            true
        })?;
        Ok(more.then_some(last))
    }

    /// How many keys there were at `revision`.
    pub(super) fn count(&self, view: &View, revision: u64) -> Result<u64, StoreError> {
        let mut count = 0;
        view.scan_at(&self.range, revision, |_| {
            count += 1;
            true
        })?;
        Ok(count)
    }

    pub(super) fn go_on(&mut self, resume: &Resume) {
        go_on(&mut self.range, resume.bound());
    }

    /// The cursor that goes on at `resume`.
    pub(super) fn cursor(&self, resume: Resume, revision: u64) -> String {
        Cursor { resume, revision }.encode(self.range.reverse)
    }

    /// The part of a key up to and with the delimiter after the prefix.
    fn group_of<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        let delimiter = self.delimiter.as_ref()?;
        let rest = key.get(self.prefix.len()..)?;
        let at = rest.windows(delimiter.len()).position(|part| part == delimiter)?;
        key.get(..self.prefix.len() + at + delimiter.len())
    }
}

/// `prefix`, or `start` and `end`, and `order`.
fn range(query: &Query, prefix: &[u8]) -> Result<Range, ApiError> {
    let (start, end) = (query.bytes("start"), query.bytes("end"));
    if !prefix.is_empty() && (start.is_some() || end.is_some()) {
        return Err(ApiError::BadRequest("prefix does not go with start or end".into()));
    }
    let mut range = Range::prefix(prefix);
    if let Some(start) = start {
        range.start = Bound::Included(start.to_vec());
    }
    if let Some(end) = end {
        range.end = Bound::Excluded(end.to_vec());
    }
    range.reverse = match query.text("order")? {
        None | Some("asc") => false,
        Some("desc") => true,
        Some(other) => {
            return Err(ApiError::BadRequest(format!(
                "query parameter \"order\" is asc or desc, not {other:?}"
            )));
        }
    };
    Ok(range)
}

fn span(range: &Range) -> Span {
    let key = |bound: &Bound<Vec<u8>>| match bound {
        Bound::Included(key) | Bound::Excluded(key) => Some(key.clone().into()),
        Bound::Unbounded => None,
    };
    Span { start: key(&range.start).unwrap_or_default(), end: key(&range.end) }
}

fn go_on(range: &mut Range, bound: Bound<Vec<u8>>) {
    if range.reverse {
        range.end = bound;
    } else {
        range.start = bound;
    }
}

/// Does a listing of `range` that goes on at `bound` stay within it?
fn continues(range: &Range, bound: &Bound<Vec<u8>>) -> bool {
    let key = |bound: &Bound<Vec<u8>>| match bound {
        Bound::Included(key) | Bound::Excluded(key) => Some(key.clone()),
        Bound::Unbounded => None,
    };
    let at = key(bound);
    if range.reverse {
        key(&range.end).is_none_or(|end| at <= Some(end))
    } else {
        key(&range.start).is_none_or(|start| at >= Some(start))
    }
}

impl Resume {
    /// What is left begins here, or ends here in reverse order, which knows no groups.
    fn bound(&self) -> Bound<Vec<u8>> {
        if !self.group {
            return Bound::Excluded(self.key.clone());
        }
        match Range::prefix(&self.key).end {
            Bound::Excluded(after) => Bound::Included(after),
            // Every key that follows begins so: nothing is left.
            Bound::Included(_) | Bound::Unbounded => Bound::Excluded(vec![0xff; KEY_MAX + 1]),
        }
    }
}

/// Where to go on, and at which revision.
#[derive(Debug, PartialEq, Eq)]
struct Cursor {
    resume: Resume,
    revision: u64,
}

impl Cursor {
    /// Shape, order, kind, revision and key, with a checksum, so that what was tampered with or
    /// belongs to another listing's order is refused.
    fn encode(&self, reverse: bool) -> String {
        let mut bytes = vec![2, u8::from(reverse), u8::from(self.resume.group)];
        bytes.extend_from_slice(&self.revision.to_le_bytes());
        bytes.extend_from_slice(&self.resume.key);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn decode(text: &str, reverse: bool) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (&[shape, order, kind], rest) = body.split_first_chunk::<3>()?;
        let (revision, key) = rest.split_first_chunk::<8>()?;
        let group = match kind {
            0 => false,
            1 if !reverse => true,
            _ => return None,
        };
        let ours = shape == 2 && order == u8::from(reverse);
        let resume = Resume { key: key.to_vec(), group };
        ours.then(|| Self { resume, revision: u64::from_le_bytes(*revision) })
    }
}

impl Edge {
    /// The state to list from, and the revision to show it at.
    pub(super) async fn listed(
        &self,
        query: &Query,
        wanted: &Wanted,
    ) -> Result<(View, u64), ApiError> {
        let mut view = self.view(query).await?;
        let newest = view.revision();
        let Some(revision) = wanted.pinned.or(wanted.revision) else { return Ok((view, newest)) };
        if wanted.pinned.is_some() && revision > newest {
            // The page before may be of a replica that is ahead of this one. A linearizable
            // read has seen all there is, so then it is the cursor of another store.
            if query.text("consistency")? != Some("stale") {
                return Err(ApiError::BadRequest("this cursor is of another store".into()));
            }
            if !self.handle.reached(revision, self.timeout(query)?).await {
                return Err(ApiError::NoLeader("this replica has not applied that page in time"));
            }
            view = self.view(query).await?;
        }
        let newest = view.revision();
        if revision > newest {
            return Err(ApiError::Beyond { what: "revision", limit: newest, actual: revision });
        }
        view.kept(revision)?;
        Ok((view, revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_and_foreign_ones_are_refused() {
        let cursor = |key: &[u8], group| Cursor {
            resume: Resume { key: key.to_vec(), group },
            revision: 1 << 40 | 7,
        };
        let after = cursor(b"a\xff", false).encode(false);
        assert_eq!(Cursor::decode(&after, false), Some(cursor(b"a\xff", false)));
        assert_eq!(Cursor::decode(&after, true), None, "another order");
        let group = cursor(b"a/", true).encode(false);
        assert_eq!(Cursor::decode(&group, false), Some(cursor(b"a/", true)));
        assert_eq!(Cursor::decode(&cursor(b"a/", true).encode(true), true), None, "upwards only");
        for at in 0..after.len() {
            let mut bad = after.clone().into_bytes();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            let bad = String::from_utf8(bad).unwrap();
            assert!(bad == after || Cursor::decode(&bad, false).is_none(), "{bad}");
        }
        for bytes in [&b""[..], &[2], &[2, 0, 0], &[2, 0, 0, 1, 2, 3, 4, 5, 6, 7]] {
            let crc = crc32c::crc32c(bytes).to_le_bytes();
            let text = URL_SAFE_NO_PAD.encode([bytes, &crc].concat());
            assert_eq!(Cursor::decode(&text, false), None, "too short");
        }
    }

    #[test]
    fn a_listing_goes_on_after_what_was_shown() {
        let bound = |key: &[u8], group| Resume { key: key.to_vec(), group }.bound();
        assert_eq!(bound(b"a", false), Bound::Excluded(b"a".to_vec()));
        assert_eq!(bound(b"a/", true), Bound::Included(b"a0".to_vec()));
        assert_eq!(bound(b"\xff", true), Bound::Excluded(vec![0xff; KEY_MAX + 1]), "nothing");
    }
}

//! A part of a value: `Range` and `If-Range` (RFC 9110, 13.1.5 and 14.2). What is asked for
//! in another unit, in several parts or not understood is answered with the whole, as the RFC
//! allows.

use std::ops::Range;

use axum::http::{HeaderMap, header};

use super::error::{ApiError, etag};

/// The part of a value of `size` bytes at `revision` that is asked for; `None`: the whole.
///
/// # Errors
/// `NotSatisfiable`.
pub(super) fn wanted(
    headers: &HeaderMap,
    revision: u64,
    size: usize,
) -> Result<Option<Range<usize>>, ApiError> {
    let mut given = headers.get_all(header::RANGE).iter();
    let (Some(range), None) = (given.next(), given.next()) else { return Ok(None) };
    // Compared strongly, and a date is never ours: values have none.
    let same = |tag: &axum::http::HeaderValue| tag.as_bytes() == etag(revision).as_bytes();
    if !headers.get_all(header::IF_RANGE).iter().all(same) {
        return Ok(None);
    }
    let part = range.to_str().ok().and_then(Part::read);
    part.map_or(Ok(None), |part| part.of(size))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// From here, up to and with there.
    From(usize, usize),
    /// So many at the end.
    Last(usize),
}

impl Part {
    fn read(text: &str) -> Option<Self> {
        let (unit, part) = text.split_once('=')?;
        let (first, last) = part.trim().split_once('-')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        match (first, last) {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(|first| Self::From(first, usize::MAX)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, last))
            }
        }
    }

    fn of(self, size: usize) -> Result<Option<Range<usize>>, ApiError> {
        match self {
            Self::From(first, _) if first >= size => {
                Err(ApiError::NotSatisfiable { size: size as u64 })
            }
            Self::From(first, last) => Ok(Some(first..last.saturating_add(1).min(size))),
            Self::Last(0) => Err(ApiError::NotSatisfiable { size: size as u64 }),
            // The whole of nothing cannot be said as a range.
            Self::Last(_) if size == 0 => Ok(None),
            Self::Last(count) => Ok(Some(size.saturating_sub(count)..size)),
        }
    }
}

/// Digits only. What is larger than any value is as good as the largest.
fn number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(range: &str, if_range: Option<&str>, size: usize) -> Result<Option<Range<usize>>, u64> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, range.parse().unwrap());
        if let Some(tag) = if_range {
            headers.insert(header::IF_RANGE, tag.parse().unwrap());
        }
        wanted(&headers, 7, size).map_err(|error| {
            let ApiError::NotSatisfiable { size } = error else { panic!("{error:?}") };
            size
        })
    }

    #[test]
    fn one_range_of_bytes_is_understood() {
        for (range, want) in [
            ("bytes=0-0", 0..1),
            ("bytes=2-5", 2..6),
            ("bytes=2-", 2..10),
            ("bytes=9-99", 9..10),
            ("bytes=-3", 7..10),
            ("bytes=-99", 0..10),
            ("Bytes=0-9", 0..10),
            ("bytes=1-99999999999999999999999", 1..10),
            ("bytes=-99999999999999999999999", 0..10),
        ] {
            assert_eq!(ask(range, None, 10), Ok(Some(want)), "{range}");
        }
        for range in ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(ask(range, None, 10), Err(10), "{range}");
        }
        assert_eq!(ask("bytes=0-", None, 0), Err(0));
        assert_eq!(ask("bytes=-1", None, 0), Ok(None));
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for range in [
            "bytes=0-1,3-4",
            "bytes=5-2",
            "bytes=",
            "bytes=-",
            "bytes",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=1--2",
            "items=0-1",
            "0-1",
        ] {
            assert_eq!(ask(range, None, 10), Ok(None), "{range}");
        }
    }

    #[test]
    fn a_range_may_be_bound_to_a_version() {
        assert_eq!(ask("bytes=0-1", Some("\"7\""), 10), Ok(Some(0..2)));
        for tag in ["\"8\"", "W/\"7\"", "7", "Mon, 23 Nov 2026 03:28:14 GMT"] {
            assert_eq!(ask("bytes=0-1", Some(tag), 10), Ok(None), "{tag}");
        }
        assert_eq!(ask("bytes=99-", Some("\"8\""), 10), Ok(None), "not even 416");
    }
}

//! A value on its way to a client.
//!
//! A snapshot that somebody reads keeps its pages from being used again. So short values are
//! copied, and the client may be as slow as it likes. Long ones are sent from the map, slice
//! by slice; what a client has not taken after a while is copied and the snapshot let go.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

use crate::machine::{Record, View};
use crate::store::StoreError;

/// Values up to this length are copied.
const COPIED: usize = 64 << 10;
/// How much is handed to the connection at once: that much of the map it may hold longer.
const SLICE: usize = 256 << 10;
/// How long a client may keep a snapshot.
const LIMIT: Duration = Duration::from_secs(10);

/// A part of the value of `key`, which is or was `record` in `view`. What was is copied: only
/// present values can be held.
pub(super) fn body(
    view: &View,
    key: &[u8],
    record: &Record<'_>,
    part: Range<usize>,
) -> Result<Body, StoreError> {
    if part.len() > COPIED
        && let Some(held) = view.held(key)?
        && held.as_ptr() == record.value.as_ptr()
    {
        return Ok(Body::new(FromMap::new(held.slice(part), LIMIT)));
    }
    Ok(Body::from(record.value.get(part).unwrap_or_default().to_vec()))
}

/// Bytes that keep a snapshot.
#[derive(Debug)]
struct FromMap {
    rest: Bytes,
    /// When the rest is copied; `None`: it was.
    until: Option<Instant>,
}

impl FromMap {
    fn new(held: Bytes, limit: Duration) -> Self {
        Self { rest: held, until: Some(Instant::now() + limit) }
    }
}

impl HttpBody for FromMap {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if self.until.is_some_and(|until| Instant::now() >= until) {
            self.rest = Bytes::copy_from_slice(&self.rest);
            self.until = None;
        }
        let len = self.rest.len().min(SLICE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use http_body_util::BodyExt;

    use super::*;
    use crate::raft::types::NodeId;
    use crate::store::simdisk::SimDisk;
    use crate::store::{Db, DbOptions, Identity, Shrink, Snapshot, Tree};

    const KEY: &[u8] = b"k";

    fn record(value: &[u8]) -> Record<'_> {
        Record {
            create_revision: 1,
            mod_revision: 1,
            nth: 0,
            version: 1,
            lease: 0,
            expiry_ms: 0,
            content_type: "text/plain",
            value,
        }
    }

    /// A database with one record, and the only handle to its snapshot but the database's own.
    fn stored(value: &[u8]) -> (Db, Arc<Snapshot>) {
        let options = DbOptions {
            path: Path::new("/d/db").to_owned(),
            map_max: 64 << 20,
            quota: 32 << 20,
            grow_step: 1 << 20,
            shrink: Shrink::default(),
        };
        let identity = Identity { cluster: 7, node: NodeId(1), incarnation: 1 };
        let mut db = Db::open(Arc::new(SimDisk::new(1)), options, identity).expect("a database");
        let mut bytes = Vec::new();
        record(value).encode(&mut bytes);
        let mut txn = db.begin();
        txn.put(Tree::Kv, KEY, &bytes).expect("room");
        let snapshot = txn.commit().expect("a whole batch");
        (db, snapshot)
    }

    #[tokio::test]
    async fn a_part_of_a_long_value_is_sent_from_the_map_too() {
        let value = pattern(3 * COPIED);
        let (_db, snapshot) = stored(&value);
        let view = View::new(snapshot);
        let record = view.get(KEY).expect("intact").expect("there");
        let at = |offset: usize| record.value.as_ptr().wrapping_add(offset);
        for (part, is_held) in [(3..2 * COPIED, true), (3..COPIED, false)] {
            let mut body = body(&view, KEY, &record, part.clone()).expect("intact");
            let frame = body.frame().await.expect("not the end").expect("no error");
            let slice = frame.into_data().expect("no trailers");
            assert_eq!(slice.as_ptr() == at(3), is_held, "{part:?}");
            assert_eq!(slice, value[part]);
            assert!(body.frame().await.is_none());
        }
        // What was is not what is there now.
        let before = pattern(4 * COPIED);
        let was = Record { value: &before, ..record };
        let body = body(&view, KEY, &was, 1..4 * COPIED).expect("intact");
        let whole = body.collect().await.expect("no error").to_bytes();
        assert_eq!(whole, before[1..]);
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| at.to_le_bytes()[at % 3]).collect()
    }

    async fn next(body: &mut FromMap) -> Bytes {
        let frame = body.frame().await.expect("not the end").expect("no error");
        frame.into_data().expect("no trailers")
    }

    #[tokio::test]
    async fn a_long_value_comes_in_slices_of_the_map() {
        let value = pattern(3 * SLICE + 5);
        let (_db, snapshot) = stored(&value);
        let alone = Arc::strong_count(&snapshot);
        let view = View::new(snapshot.clone());
        let place = view.get(KEY).expect("intact").expect("there").value.as_ptr();
        let mut body = FromMap::new(view.held(KEY).expect("intact").expect("long"), LIMIT);
        drop(view);
        assert_eq!(Arc::strong_count(&snapshot), alone + 1, "the body holds it");
        let mut seen = Vec::new();
        let mut slices = Vec::new();
        while !body.is_end_stream() {
            let left = (value.len() - seen.len()) as u64;
            assert_eq!(body.size_hint().exact(), Some(left));
            let slice = next(&mut body).await;
            assert_eq!(slice.as_ptr(), place.wrapping_add(seen.len()), "not a copy");
            assert!(slice.len() <= SLICE);
            seen.extend_from_slice(&slice);
            slices.push(slice);
        }
        assert!(body.frame().await.is_none());
        assert!(seen == value, "the bytes that were stored");
        drop(body);
        assert_eq!(Arc::strong_count(&snapshot), alone + 1, "slices hold it");
        drop(slices);
        assert_eq!(Arc::strong_count(&snapshot), alone);
    }

    #[tokio::test]
    async fn after_the_limit_the_rest_is_a_copy_and_the_snapshot_free() {
        let value = pattern(2 * SLICE + 5);
        let (_db, snapshot) = stored(&value);
        let alone = Arc::strong_count(&snapshot);
        let held = View::new(snapshot.clone()).held(KEY).expect("intact").expect("long");
        let mut body = FromMap::new(held, Duration::ZERO);
        assert_eq!(Arc::strong_count(&snapshot), alone + 1);
        let first = next(&mut body).await;
        assert_eq!(Arc::strong_count(&snapshot), alone, "let go, though the body lives");
        let rest = body.collect().await.expect("no error").to_bytes();
        assert!([first, rest].concat() == value, "the bytes that were stored");
    }

    #[tokio::test]
    async fn a_value_up_to_the_bound_is_copied() {
        for (len, holds) in [(0, 0), (100, 0), (COPIED, 0), (COPIED + 1, 1)] {
            let value = pattern(len);
            let (_db, snapshot) = stored(&value);
            let alone = Arc::strong_count(&snapshot);
            let view = View::new(snapshot.clone());
            let kept = view.get(KEY).expect("intact").expect("there");
            let body = body(&view, KEY, &kept, 0..value.len()).expect("intact");
            drop(view);
            assert_eq!(Arc::strong_count(&snapshot), alone + holds, "{len} bytes");
            assert_eq!(body.size_hint().exact(), Some(len as u64));
            let sent = body.collect().await.expect("no error").to_bytes();
            assert!(sent == value, "{len} bytes come back");
        }
    }
}

//! Bytes of bodies that are held in memory at the same time.
//!
//! A body counts as it comes, and until its request is answered. What it says of its length does
//! not count: a few clients that announce much and send nothing would keep all others out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::http::HeaderMap;
use bytes::Bytes;

use super::error::ApiError;
use super::{Edge, extract};

/// What all requests hold together.
#[derive(Debug)]
pub(super) struct Held {
    limit: u64,
    bytes: AtomicU64,
}

impl Held {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, bytes: AtomicU64::new(0) }
    }
}

/// What one request holds, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<Held>,
    bytes: u64,
}

impl Share {
    /// # Errors
    /// `TooManyBytes`: there is no room for so many; it is as large as before.
    pub(super) fn grow_to(&mut self, bytes: u64) -> Result<(), ApiError> {
        let more = bytes.saturating_sub(self.bytes);
        let limit = self.of.limit;
        let grown = |held: u64| held.checked_add(more).filter(|sum| *sum <= limit);
        let counter = &self.of.bytes;
        let before = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown);
        before
            .map_err(|held| ApiError::TooManyBytes { limit, actual: held.saturating_add(more) })?;
        self.bytes += more;
        Ok(())
    }

    /// Gives back what is not held any more.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        self.of.bytes.fetch_sub(less, Ordering::Relaxed);
        self.bytes -= less;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Edge {
    /// Nothing yet, to grow with what a request holds.
    pub(super) fn share(&self) -> Share {
        Share { of: self.held.clone(), bytes: 0 }
    }

    /// Reads a body that may be large. Keep the share until the request is answered.
    pub(super) async fn body(
        &self,
        headers: &HeaderMap,
        body: Body,
        limit: u64,
    ) -> Result<(Bytes, Share), ApiError> {
        let mut share = self.share();
        let count = |bytes| share.grow_to(bytes);
        let bytes = extract::counted_body(headers, body, limit, &self.config.http, count).await?;
        Ok((bytes, share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_counted_together_and_given_back() {
        let of = Arc::new(Held::new(10));
        let share = || Share { of: of.clone(), bytes: 0 };
        let (mut one, mut two) = (share(), share());
        assert_eq!(one.grow_to(4), Ok(()));
        assert_eq!(one.grow_to(6), Ok(()), "it grows to, not by");
        assert_eq!(one.grow_to(5), Ok(()), "and does not shrink");
        assert_eq!(two.grow_to(5), Err(ApiError::TooManyBytes { limit: 10, actual: 11 }));
        assert!(two.grow_to(u64::MAX).is_err());
        assert_eq!(two.grow_to(4), Ok(()));
        drop(one);
        assert_eq!(two.grow_to(10), Ok(()));
        two.shrink_to(3);
        two.shrink_to(4);
        assert_eq!(of.bytes.load(Ordering::Relaxed), 3, "it shrinks, and does not grow");
        drop(two);
        assert_eq!(of.bytes.load(Ordering::Relaxed), 0);
    }
}

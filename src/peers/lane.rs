//! One way to one peer: a queue and the connection that empties it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

use super::{Dialer, Lost, Parcel};
use crate::raft::types::NodeId;

/// Pauses between attempts to connect: short at first, since a restarted peer is wanted
/// back soon.
const BACKOFF: [Duration; 5] = [
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
];
/// An election message that is not through by then is stale.
const VOTE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Lane {
    pub(super) peer: NodeId,
    pub(super) url: String,
    pub(super) client: Dialer,
    pub(super) sender_url: String,
    pub(super) lost: Arc<dyn Lost>,
}

impl Lane {
    /// Keeps one streaming request open while there is something to send; ends when the
    /// sender of the queue is gone.
    pub(super) async fn run(self, queue: mpsc::Receiver<Parcel>) {
        let mut queue = queue;
        let mut failures = 0;
        // Connect when there is something to say, not before.
        while let Some(first) = queue.recv().await {
            let shared = Arc::new(Mutex::new(Stream { queue, parts: first.into(), sent: false }));
            let body = reqwest::Body::wrap(StreamBody(shared.clone()));
            let result = self
                .client
                .post(&self.url)
                .header(super::SENDER_URL, &self.sender_url)
                .body(body)
                .send()
                .await;
            if let Ok(response) = &result
                && !response.status().is_success()
            {
                tracing::warn!(peer = %self.peer, status = %response.status(), "peer refused our stream");
            }
            drop(result);
            let Some(stream) = reclaim(shared) else { return };
            failures = if stream.sent { 0 } else { failures + 1 };
            queue = stream.queue;
            // What waited is stale by now; the protocol sends again what still holds.
            while queue.try_recv().is_ok() {}
            self.lost.lost(self.peer);
            let step = failures.min(BACKOFF.len() - 1);
            tokio::time::sleep(BACKOFF[step]).await;
            while queue.try_recv().is_ok() {}
        }
    }

    /// Sends each message as a request of its own, one after the other.
    pub(super) async fn run_votes(self, mut queue: mpsc::Receiver<Parcel>) {
        while let Some(parcel) = queue.recv().await {
            let body: Vec<u8> = parcel.concat();
            let sent = self
                .client
                .post(&self.url)
                .header(super::SENDER_URL, &self.sender_url)
                .timeout(VOTE_TIMEOUT)
                .body(body)
                .send()
                .await;
            match sent {
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, "an election message was lost");
                }
                Ok(response) if !response.status().is_success() => {
                    let status = response.status();
                    tracing::warn!(peer = %self.peer, %status, "peer refused our message");
                }
                Ok(_) => {}
            }
        }
    }
}

/// The queue comes back when the request and its body are dropped; the request future is
/// done by the time this is called, so nobody else holds it for long.
fn reclaim(shared: Arc<Mutex<Stream>>) -> Option<Stream> {
    let mut stream = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, closed) = mpsc::channel(1);
    let queue = std::mem::replace(&mut stream.queue, closed);
    let sent = stream.sent;
    drop(stream);
    (!queue.is_closed() || !queue.is_empty()).then_some(Stream {
        queue,
        parts: VecDeque::new(),
        sent,
    })
}

struct Stream {
    queue: mpsc::Receiver<Parcel>,
    /// Parts of the packet that is being sent.
    parts: VecDeque<Bytes>,
    /// Did the connection take anything?
    sent: bool,
}

/// A request body that never ends by itself.
struct StreamBody(Arc<Mutex<Stream>>);

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stream.parts.is_empty() {
            match stream.queue.poll_recv(context) {
                Poll::Ready(Some(parcel)) => stream.parts = parcel.into(),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
        stream.sent = true;
        Poll::Ready(stream.parts.pop_front().map(|part| Ok(Frame::data(part))))
    }
}

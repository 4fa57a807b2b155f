//! Notices that the leader's process ended. The kernel closes the connections of a dead
//! process at once, so its followers need not wait for their election time-out.
//!
//! A connection may also end because a network device forgot it, while the leader works. So
//! nothing is concluded from the end of a stream alone: the protocol is told only if nobody
//! listens at the leader's address any more. When the machine itself is gone, or cut off,
//! there is no such answer, and the election time-out decides.

use std::time::Duration;

use super::handle::{Handle, Mail};
use super::work::Event;
use crate::raft::types::NodeId;

/// Pauses between looks. A dying process may close its listener after its connections, and
/// one that is looked at too early still seems to listen.
const PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(50),
];

/// Lives as long as a stream from a peer. The server drops the future that reads the stream
/// when the connection ends, so the end is noticed here and not after the last read.
pub(super) struct Watched {
    handle: Handle,
    /// Who speaks on the stream, once known.
    pub(super) from: Option<NodeId>,
}

impl Watched {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle, from: None }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let shared = &self.handle.shared;
        let leader = shared.status.borrow().leader.map(NodeId);
        if self.from.is_none() || self.from != leader || *shared.stopping.borrow() {
            return;
        }
        let (Some(peer), Ok(runtime)) = (self.from, tokio::runtime::Handle::try_current()) else {
            return;
        };
        let handle = self.handle.clone();
        runtime.spawn(async move {
            for pause in PAUSES {
                tokio::time::sleep(pause).await;
                if handle.shared.peers.is_refused(peer).await {
                    tracing::info!(%peer, "the leader's process is gone");
                    let gone = Mail::Event(Event::LeaderGone(peer));
                    drop(handle.shared.inbox.send(gone).await);
                    return;
                }
            }
        });
    }
}

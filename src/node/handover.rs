//! Moving leadership, as the edge asks for it: the wish goes to the leader, wherever that is,
//! and the answer is who leads in the end.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::handle::{Handle, Mail, PeerError, wait_for_news};
use super::work::{Answer, Event};
use crate::peers::{self, NotHandedOver};
use crate::raft::types::NodeId;

/// Why somebody else does not lead now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoverError {
    /// The leader refused.
    Refused(NotHandedOver),
    /// Nobody leads, or nobody that leads could be reached.
    NoLeader,
    /// It was begun, and this node did not become leader in time.
    TooLate(NodeId),
    /// This node is shutting down.
    Draining,
}

impl Handle {
    /// Moves leadership to `to`, or to the voter that is most caught up, and waits until this
    /// node knows that it leads; its id. A follower forwards the wish, once.
    ///
    /// # Errors
    /// See [`HandoverError`].
    pub async fn hand_over(
        &self,
        to: Option<u64>,
        timeout: Duration,
    ) -> Result<u64, HandoverError> {
        let deadline = Instant::now() + timeout;
        let mut status = self.shared.status.clone();
        let heir = loop {
            status.mark_unchanged();
            let mut outcome = self.hand_over_here(to.map(NodeId), deadline).await;
            if let Err(HandoverError::Refused(NotHandedOver::NotLeader(Some(leader)))) = outcome
                && leader != self.shared.us.node
            {
                let left = deadline.saturating_duration_since(Instant::now());
                let wish = peers::encode_wish(to.map(NodeId));
                let answer = self
                    .shared
                    .peers
                    .forward_handover(leader, wish, left, self.trace.as_deref())
                    .await;
                outcome = answer.map_or(Err(HandoverError::NoLeader), |outcome| {
                    outcome.map_err(HandoverError::Refused)
                });
            }
            match outcome {
                Ok(heir) => break heir,
                // Nothing was begun: the next leader may be asked.
                Err(
                    HandoverError::Refused(NotHandedOver::NotLeader(_)) | HandoverError::NoLeader,
                ) => {}
                Err(error) => return Err(error),
            }
            if !wait_for_news(&mut status, deadline).await {
                return Err(HandoverError::NoLeader);
            }
        };
        let leads = status.wait_for(|status| status.leader == Some(heir.0));
        match timeout_at(deadline, leads).await {
            Ok(Ok(_)) => Ok(heir.0),
            Ok(Err(_)) => Err(HandoverError::Draining),
            Err(_) => Err(HandoverError::TooLate(heir)),
        }
    }

    async fn hand_over_here(
        &self,
        to: Option<NodeId>,
        deadline: Instant,
    ) -> Result<NodeId, HandoverError> {
        let (waiter, answer) = oneshot::channel();
        let wish = Mail::Event(Event::HandOver(to, waiter));
        self.shared.inbox.send(wish).await.map_err(|_| HandoverError::Draining)?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(Answer::HandingOver(outcome))) => outcome.map_err(HandoverError::Refused),
            Ok(Ok(_) | Err(_)) => Err(HandoverError::Draining),
            Err(_) => Err(HandoverError::NoLeader),
        }
    }

    /// `POST /v1/raft/handover`: a wish forwarded by a follower; the answer's bytes. Never
    /// forwarded again.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn peer_handover(&self, body: Bytes) -> Result<Bytes, PeerError> {
        let (wish, timeout) = peers::decode_forwarded(self.shared.us, body).ok_or_else(|| {
            PeerError::Misdirected("not a wish forwarded to this node of this cluster".into())
        })?;
        let to = peers::decode_wish(wish)
            .ok_or_else(|| PeerError::Malformed("not a wish for a leader".into()))?;
        let deadline = Instant::now() + timeout.min(Duration::from_hours(1));
        match self.hand_over_here(to, deadline).await {
            Ok(heir) => Ok(peers::encode_handover(Ok(heir))),
            Err(HandoverError::Refused(why)) => Ok(peers::encode_handover(Err(why))),
            Err(HandoverError::NoLeader | HandoverError::TooLate(_) | HandoverError::Draining) => {
                Err(PeerError::Unavailable("this node is shutting down".into()))
            }
        }
    }
}

//! Commands that reached a follower: carried to the leader, once, and its answer back.
//!
//! A forwarded command is never forwarded again: a node that does not lead says so, and the
//! node that the client spoke to decides what to do (no loops).

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use reqwest::RequestBuilder;

use super::Dialer;
use crate::logs::Trace;
use crate::machine::Applied;
use crate::raft::types::NodeId;
use crate::wire::Address;

/// Cluster id, receiver, then milliseconds that the sender will wait.
const HEADER: usize = 16 + 8 + 8;

/// The state of whoever applied a command, as of its answer. A follower is behind that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The store's revision.
    pub revision: u64,
    /// The replicated clock in milliseconds.
    pub time_ms: u64,
}

/// What the leader answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It applied the command.
    Applied(Applied, Seen),
    /// It does not lead; nothing was changed.
    NotLeader,
    /// It has too much to do; nothing was changed.
    Overloaded,
    /// It is over its quota; nothing was changed. Limit and actual bytes.
    Full(u64, u64),
    /// It cannot tell what became of the command.
    Unknown,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// The command never left this node.
    #[error("the leader cannot be reached")]
    Unreachable,
    /// The command may have arrived.
    #[error("the leader did not answer")]
    Lost,
}

pub(super) async fn forward(
    client: &Dialer,
    us: Address,
    leader: NodeId,
    url: &str,
    command: Bytes,
    timeout: Duration,
    trace: Option<&Trace>,
) -> Result<Reply, ForwardError> {
    let url = format!("{url}/v1/raft/propose");
    let answer = carry(client, us, leader, url, (command, trace), timeout).await?;
    decode_reply(answer).ok_or(ForwardError::Lost)
}

/// Carries `content`, on behalf of a request, to a route of the leader that expects it behind
/// the header.
pub(super) async fn carry(
    client: &Dialer,
    us: Address,
    leader: NodeId,
    url: String,
    (content, trace): (Bytes, Option<&Trace>),
    timeout: Duration,
) -> Result<Bytes, ForwardError> {
    let mut body = BytesMut::with_capacity(HEADER + content.len());
    body.put_u128_le(us.cluster);
    body.put_u64_le(leader.0);
    body.put_u64_le(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    body.extend_from_slice(&content);
    let request = client.post(url).timeout(timeout).body(body.freeze());
    let response = on_behalf(request, trace).send().await;
    let response = response.map_err(|error| {
        if error.is_connect() { ForwardError::Unreachable } else { ForwardError::Lost }
    })?;
    // Refusals of the edge itself come before anything is proposed.
    if !response.status().is_success() {
        return Err(ForwardError::Unreachable);
    }
    response.bytes().await.map_err(|_| ForwardError::Lost)
}

/// Tells the receiver for which request of a client this one is.
pub(super) fn on_behalf(request: RequestBuilder, trace: Option<&Trace>) -> RequestBuilder {
    let headers = trace.into_iter().flat_map(Trace::headers);
    headers.fold(request, |request, (name, value)| request.header(name, value))
}

/// Takes a forwarded command apart; `None`: it is none, or not for us.
#[must_use]
pub fn decode_forwarded(us: Address, mut body: Bytes) -> Option<(Bytes, Duration)> {
    if body.len() < HEADER {
        return None;
    }
    let (cluster, to, timeout) = (body.get_u128_le(), body.get_u64_le(), body.get_u64_le());
    (cluster == us.cluster && to == us.node.0).then(|| (body, Duration::from_millis(timeout)))
}

/// The body of an answer to a forwarded command.
#[must_use]
pub fn encode_reply(reply: &Reply) -> Bytes {
    let mut out = BytesMut::new();
    match reply {
        Reply::Applied(applied, seen) => {
            out.put_u8(0);
            out.put_u64_le(seen.revision);
            out.put_u64_le(seen.time_ms);
            out.extend_from_slice(&applied.encode());
        }
        Reply::NotLeader => out.put_u8(1),
        Reply::Overloaded => out.put_u8(2),
        Reply::Full(limit, actual) => {
            out.put_u8(3);
            out.put_u64_le(*limit);
            out.put_u64_le(*actual);
        }
        Reply::Unknown => out.put_u8(4),
    }
    out.freeze()
}

fn decode_reply(mut bytes: Bytes) -> Option<Reply> {
    match bytes.try_get_u8().ok()? {
        0 => {
            let (revision, time_ms) = (bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
            Some(Reply::Applied(Applied::decode(&bytes)?, Seen { revision, time_ms }))
        }
        1 => Some(Reply::NotLeader),
        2 => Some(Reply::Overloaded),
        3 => Some(Reply::Full(bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?)),
        4 => Some(Reply::Unknown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_survive_their_encoding() {
        for reply in [
            Reply::Applied(
                Applied::ConditionFailed { current: Some(4) },
                Seen { revision: 5, time_ms: 6 },
            ),
            Reply::NotLeader,
            Reply::Overloaded,
            Reply::Full(9, 10),
            Reply::Unknown,
        ] {
            assert_eq!(decode_reply(encode_reply(&reply)), Some(reply));
        }
        assert_eq!(decode_reply(Bytes::new()), None);
    }
}

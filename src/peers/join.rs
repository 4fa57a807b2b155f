//! A new node asks a member of a running cluster to be taken in.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Dialer;
use crate::config::Config;
use crate::raft::types::{Membership, NodeId};

/// A member answers within this time: the change has to be committed.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Body of `POST /v1/cluster/members`.
#[derive(Clone, Debug, Serialize)]
pub struct JoinRequest {
    /// The new node.
    pub id: u64,
    /// Where it is reached.
    pub url: String,
    /// `voter`: as soon as it is caught up; else `learner`.
    pub role: &'static str,
    /// The life of its data folder, in hexadecimal.
    pub incarnation: String,
}

/// Why a node cannot join, and never will as it is set up.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct JoinError(String);

#[derive(Debug, Deserialize)]
struct Cluster {
    cluster_id: String,
    members: Vec<Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    id: u64,
    url: String,
    voter: bool,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    code: String,
    detail: String,
}

/// Asks the members at `urls`, one after the other, until one of them took the node in: the
/// cluster's id, and its members.
///
/// # Errors
/// When the cluster refuses for a reason that does not pass.
pub async fn join(
    urls: &[String],
    request: &JoinRequest,
    config: &Config,
) -> Result<(u128, Membership), JoinError> {
    let client = Dialer::new(config).map_err(|error| JoinError(error.to_string()))?;
    loop {
        for url in urls {
            let url = url.trim_end_matches('/');
            match ask(&client, url, request).await? {
                Ok(answer) => return Ok(answer),
                Err(why) => tracing::warn!(%url, %why, "not joined yet; trying again"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One attempt; the inner error passes.
async fn ask(
    client: &Dialer,
    url: &str,
    request: &JoinRequest,
) -> Result<Result<(u128, Membership), String>, JoinError> {
    let sent = client
        .post(format!("{url}/v1/cluster/members"))
        .timeout(TIMEOUT)
        .json(request)
        .send()
        .await;
    let response = match sent {
        Ok(response) => response,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let status = response.status();
    if status.is_success() {
        let cluster: Cluster = match response.json().await {
            Ok(cluster) => cluster,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let answer = cluster.told(request.id);
        return answer.map(Ok).ok_or_else(|| JoinError(format!("{url} is not a node of mmapd")));
    }
    let refusal = response.json().await.unwrap_or_else(|_| Refusal {
        code: status.to_string(),
        detail: "no reason was given".into(),
    });
    let why = format!("{} ({})", refusal.detail, refusal.code);
    let passes = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
    if passes { Ok(Err(why)) } else { Err(JoinError(format!("{url} refuses: {why}"))) }
}

impl Cluster {
    fn told(self, us: u64) -> Option<(u128, Membership)> {
        let cluster = u128::from_str_radix(&self.cluster_id, 16).ok()?;
        let mut membership = Membership { learners: vec![NodeId(us)], ..Membership::default() };
        let mut addresses = BTreeMap::new();
        for Member { id, url, voter } in self.members {
            if voter && id != us {
                membership.voters.push(NodeId(id));
            }
            addresses.insert(NodeId(id), url);
        }
        membership.voters.sort_unstable();
        membership.addresses = addresses;
        Some((cluster, membership))
    }
}

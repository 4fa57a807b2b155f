//! Changes of the membership as operators ask for them, and what becomes of them.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use bytes::Bytes;

use super::handle::{Handle, Mail, wait_for_news};
use super::work::{Answer, Event};
use crate::peers::{ForwardError, Relayed};
use crate::raft::message::ChangeRefusal;
use crate::raft::types::{Index, Membership, NodeId};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A node receives the log from now on, and votes once it is caught up if it is to.
    Add {
        /// Its id; new, or that of a learner whose data folder was made anew.
        id: NodeId,
        /// Where it is reached.
        url: String,
        /// The life of its data folder; `None`: the first that answers.
        incarnation: Option<u64>,
        /// Becomes a voter by itself.
        promote: bool,
    },
    /// A member votes from now on, or no more; a new address.
    Set {
        /// Which member.
        id: NodeId,
        /// `true`: it votes. `None`: as it was.
        voter: Option<bool>,
        /// Where it is reached from now on; `None`: as it was.
        url: Option<String>,
    },
    /// A node does not belong to the cluster any more.
    Remove {
        /// Which node.
        id: NodeId,
    },
    /// The cluster consists of exactly these, in one step: id, address, voter. New nodes
    /// have to be learners first.
    Replace {
        /// All members.
        members: Vec<(NodeId, String, bool)>,
    },
}

/// Why the membership stayed as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotChanged {
    /// Another node leads, or nobody.
    #[error("this node does not lead")]
    NotLeader(Option<NodeId>),
    /// Something else is under way that ends by itself.
    #[error("{0}")]
    Busy(&'static str),
    /// There is no such member.
    #[error("{0} is not a member")]
    NoSuchMember(NodeId),
    /// The request contradicts the membership.
    #[error("{0}")]
    Conflict(String),
    /// The cluster could not go on after it.
    #[error("{0}")]
    Refused(String),
    /// The configuration is too large to be stored.
    #[error(
        "the members and their addresses need more than 2040 bytes, the old and the new ones together"
    )]
    TooMany,
    /// It may happen yet, or have happened.
    #[error("the change was proposed and not confirmed: {0}")]
    Unknown(&'static str),
    /// Nothing changes: it is that way already.
    #[error("it is that way already")]
    Unchanged,
}

impl From<ChangeRefusal> for NotChanged {
    fn from(refusal: ChangeRefusal) -> Self {
        match refusal {
            ChangeRefusal::NotLeader(leader) => Self::NotLeader(leader),
            ChangeRefusal::Transferring => Self::Busy("leadership is being handed over"),
            ChangeRefusal::Pending => Self::Busy("another change is under way"),
            ChangeRefusal::NotReady => Self::Busy("the leader has only just been elected"),
            ChangeRefusal::Unchanged => Self::Unchanged,
            ChangeRefusal::Impossible(why) => Self::Refused(why.to_owned()),
            ChangeRefusal::Behind(id) => Self::Refused(format!(
                "node {} is not up to date and answering: add it as a learner and wait until its \
                 lag is small",
                id.0
            )),
            ChangeRefusal::NoQuorum { answering, voters } => Self::Refused(format!(
                "of the {voters} voters there would be, {answering} follow the leader and answer: \
                 no majority, so nothing could be written afterwards"
            )),
        }
    }
}

impl MemberChange {
    /// The configuration that it leads to.
    ///
    /// # Errors
    /// When it does not fit the members there are.
    pub fn target(&self, current: &Membership) -> Result<Membership, NotChanged> {
        let mut target = Membership { auto_leave: false, ..current.clone() };
        match self {
            Self::Add { id, url, incarnation, promote } => {
                add(&mut target, *id, url, *incarnation, *promote)?;
            }
            Self::Set { id, voter, url } => {
                if !current.members().contains(id) {
                    return Err(NotChanged::NoSuchMember(*id));
                }
                if let Some(voter) = voter {
                    place(&mut target, *id, *voter);
                }
                if let Some(url) = url {
                    target.addresses.insert(*id, url.clone());
                }
            }
            Self::Remove { id } => {
                if !current.members().contains(id) {
                    return Err(NotChanged::NoSuchMember(*id));
                }
                forget(&mut target, *id);
            }
            Self::Replace { members } => {
                for id in current.members() {
                    if !members.iter().any(|(kept, ..)| *kept == id) {
                        forget(&mut target, id);
                    }
                }
                for (id, url, voter) in members {
                    if *voter || !target.promote.contains(id) {
                        place(&mut target, *id, *voter);
                    }
                    target.addresses.insert(*id, url.clone());
                }
            }
        }
        unique_addresses(&target)?;
        Ok(target)
    }
}

fn add(
    target: &mut Membership,
    id: NodeId,
    url: &str,
    incarnation: Option<u64>,
    promote: bool,
) -> Result<(), NotChanged> {
    let is_same_life = match (incarnation, target.incarnations.get(&id)) {
        (Some(new), Some(known)) => new == *known,
        (Some(_) | None, _) => incarnation.is_none(),
    };
    if target.is_voter(id) {
        if is_same_life && target.addresses.get(&id).is_some_and(|known| known == url) {
            return Err(NotChanged::Unchanged);
        }
        return Err(NotChanged::Conflict(format!(
            "node {} is a voter already, with another data folder or address: remove it first \
             (DELETE /v1/cluster/members/{}), so that it cannot vote as its old self",
            id.0, id.0
        )));
    }
    if !is_same_life || !target.learners.contains(&id) {
        target.incarnations.remove(&id);
        target.incarnations.extend(incarnation.map(|incarnation| (id, incarnation)));
    }
    target.addresses.insert(id, url.to_owned());
    place(target, id, false);
    if promote {
        target.promote.push(id);
        target.promote.sort_unstable();
    }
    Ok(())
}

/// Makes `id` a voter or a learner.
fn place(target: &mut Membership, id: NodeId, voter: bool) {
    for list in [&mut target.voters, &mut target.learners, &mut target.promote] {
        list.retain(|other| *other != id);
    }
    let list = if voter { &mut target.voters } else { &mut target.learners };
    list.push(id);
    list.sort_unstable();
}

fn forget(target: &mut Membership, id: NodeId) {
    for list in [&mut target.voters, &mut target.learners, &mut target.promote] {
        list.retain(|other| *other != id);
    }
    target.addresses.remove(&id);
    target.incarnations.remove(&id);
}

fn unique_addresses(target: &Membership) -> Result<(), NotChanged> {
    let mut urls: Vec<&String> = target.addresses.values().collect();
    urls.sort_unstable();
    match urls.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            Err(NotChanged::Conflict(format!("two members would have the URL {}", pair[0])))
        }
        None => Ok(()),
    }
}

/// Why the leader's answer is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayError {
    /// The request never left this node.
    NotSent,
    /// It may have arrived.
    Lost,
}

impl Handle {
    /// Carries an operator's request to another node and brings its answer.
    ///
    /// # Errors
    /// See [`RelayError`].
    pub async fn relay(
        &self,
        to: NodeId,
        method: &str,
        path: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Relayed, RelayError> {
        let relayed =
            self.shared.peers.relay(to, method, path, body, timeout, self.trace.as_deref()).await;
        relayed.map_err(|error| match error {
            ForwardError::Unreachable => RelayError::NotSent,
            ForwardError::Lost => RelayError::Lost,
        })
    }

    /// Waits until another node leads, or a short while passed.
    pub async fn news(&self, deadline: Instant) {
        wait_for_news(&mut self.shared.status.clone(), deadline).await;
    }

    /// Changes the membership, if this node leads; waits until the change is done, both
    /// steps of a joint one.
    ///
    /// # Errors
    /// See [`NotChanged`]; all but `Unknown` mean that nothing was changed.
    pub async fn change_members(
        &self,
        change: MemberChange,
        timeout: Duration,
    ) -> Result<(), NotChanged> {
        let deadline = Instant::now() + timeout;
        let mut status = self.shared.status.clone();
        let index = loop {
            status.mark_unchanged();
            match self.change_once(change.clone(), deadline).await {
                Ok(index) => break index,
                Err(NotChanged::Unchanged) => return Ok(()),
                // Both end by themselves.
                Err(NotChanged::Busy(_) | NotChanged::NotLeader(None))
                    if wait_for_news(&mut status, deadline).await => {}
                Err(why) => return Err(why),
            }
        };
        let done = status.wait_for(|status| status.applied_index >= index.0 && !status.joint);
        match timeout_at(deadline, done).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(NotChanged::Unknown("its last step is under way")),
        }
    }

    async fn change_once(
        &self,
        change: MemberChange,
        deadline: Instant,
    ) -> Result<Index, NotChanged> {
        let (waiter, answer) = oneshot::channel();
        let stopped = NotChanged::Unknown("the node stopped");
        let mail = Mail::Event(Event::ChangeMembers(waiter, change));
        if self.shared.inbox.send(mail).await.is_err() {
            return Err(NotChanged::NotLeader(None));
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(Answer::Changed(outcome))) => outcome,
            Ok(Ok(Answer::NotLeader(leader))) => Err(NotChanged::NotLeader(leader)),
            Ok(Ok(_)) => Err(NotChanged::Unknown("leadership changed meanwhile")),
            Ok(Err(_)) => Err(stopped),
            Err(_) => Err(NotChanged::Unknown("it took too long")),
        }
    }
}

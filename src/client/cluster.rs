//! The cluster and its nodes: look, change, keep.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::body::Body;
use super::error::Error;
use super::transport::{Call, Client, Kind};
use crate::config::show_duration;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It decides the order of writes.
    Leader,
    /// It votes and follows.
    Follower,
    /// It wants to lead.
    Candidate,
    /// It follows without a vote.
    Learner,
}

/// What the node that answered says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Status {
    /// Its id.
    pub id: u64,
    /// The cluster's, in hex.
    pub cluster_id: String,
    /// What it is.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<u64>,
    /// Last entry that it knows to be committed.
    pub commit_index: u64,
    /// Last entry that its state holds.
    pub applied_index: u64,
    /// Last revision that its state holds.
    pub revision: u64,
    /// Last entry of its log.
    pub last_log_index: u64,
    /// First entry of its log.
    pub first_log_index: u64,
    /// Bytes of its log.
    pub log_size_bytes: u64,
    /// Bytes of its database file.
    pub db_size_bytes: u64,
    /// Bytes of pages in use.
    pub db_live_bytes: u64,
    /// Keys.
    pub keys: u64,
    /// What an operator should know, in words of one token.
    pub alarms: Vec<String>,
    /// Of the program.
    pub version: String,
    /// Since its start.
    pub uptime_seconds: u64,
}

/// One member, as another node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Where it is reached.
    pub url: String,
    /// What it is.
    pub role: Role,
    /// Does it vote?
    pub voter: bool,
    /// The life of its data folder, in hex.
    pub incarnation: Option<String>,
    /// Last entry that is known to be the leader's; the leader knows.
    pub match_index: Option<u64>,
    /// Next entry it will be sent; the leader knows.
    pub next_index: Option<u64>,
    /// Entries it is behind; the leader knows.
    pub lag: Option<u64>,
    /// Since it was last heard of.
    pub last_contact_ms: Option<u64>,
}

/// All members, as one node knows them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Members {
    /// The cluster's id, in hex.
    pub cluster_id: String,
    /// Who says so.
    pub node: u64,
    /// Its term.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<u64>,
    /// Is a change under way?
    pub changing: bool,
    /// They, by id.
    pub members: Vec<Member>,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Leader {
    /// Its id.
    pub id: u64,
    /// Where it is reached.
    pub url: String,
    /// Its term.
    pub term: u64,
}

/// What a compaction of one node's file did.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Compaction {
    /// Bytes of the file before.
    pub before_bytes: u64,
    /// And after.
    pub after_bytes: u64,
    /// Bytes of pages in use.
    pub live_bytes: u64,
    /// How long it took.
    pub duration_ms: u64,
    /// The revision that was written.
    pub revision: u64,
}

/// Something that is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Finding {
    /// In which file.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// What.
    pub what: String,
}

/// What a look at all of one node's disk found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Scrub {
    /// Bytes of the log that were read.
    pub log_bytes: u64,
    /// Bytes of the database that were read.
    pub db_bytes: u64,
    /// What is damaged.
    pub findings: Vec<Finding>,
    /// How long it took.
    pub duration_ms: u64,
}

/// Which lines one node writes to its log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct LogFilter {
    /// The filter in effect.
    pub filter: String,
    /// The filter of its settings.
    pub configured: String,
    /// How long it stays so; `None`: until it is changed, or the settings are read again.
    pub remaining_ms: Option<u64>,
}

/// How long a node may read or write all of its files.
const WHOLE_FILES: Duration = Duration::from_hours(1);

impl Client {
    /// What the node that answers says of itself.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<Status, Error> {
        self.json(Call::of_node(Method::GET, "/v1/status", Kind::Read)).await
    }

    /// The members, as the node that answers knows them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn members(&self) -> Result<Members, Error> {
        self.json(Call::of_node(Method::GET, "/v1/cluster", Kind::Read)).await
    }

    /// Who leads.
    ///
    /// # Errors
    /// See [`Error`]; `no-leader` when nobody does for as long as the deadline lasts.
    pub async fn leader(&self) -> Result<Leader, Error> {
        self.json(Call::of_node(Method::GET, "/v1/cluster/leader", Kind::Read)).await
    }

    /// Moves leadership: to a node, or to the voter that is most caught up.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<Leader, Error> {
        let body = to.map_or_else(|| json!({}), |to| json!({"to": to}));
        // Without a target twice would move it on.
        let kind = if to.is_some() { Kind::Repeatable } else { Kind::Unnamed };
        self.json(Call::of_node(Method::POST, "/v1/cluster/leader", kind).json(&body)).await
    }

    /// Takes a node in as a learner, which becomes a voter once it is caught up.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_member(&self, id: u64, url: &str) -> Result<Members, Error> {
        let body = json!({"id": id, "url": url});
        let call = Call::of_node(Method::POST, "/v1/cluster/members", Kind::Unnamed);
        self.json(call.json(&body)).await
    }

    /// Makes a member a voter, or a learner.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_voter(&self, id: u64, voter: bool) -> Result<Members, Error> {
        let role = if voter { "voter" } else { "learner" };
        self.patch(id, &json!({"role": role})).await
    }

    /// Tells where a member is reached from now on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_url(&self, id: u64, url: &str) -> Result<Members, Error> {
        self.patch(id, &json!({"url": url})).await
    }

    async fn patch(&self, id: u64, body: &serde_json::Value) -> Result<Members, Error> {
        let path = format!("/v1/cluster/members/{id}");
        self.json(Call::of_node(Method::PATCH, path, Kind::Repeatable).json(body)).await
    }

    /// Removes a member.
    ///
    /// # Errors
    /// See [`Error`]; `not-found` when it is none.
    pub async fn remove_member(&self, id: u64) -> Result<Members, Error> {
        let path = format!("/v1/cluster/members/{id}");
        self.json(Call::of_node(Method::DELETE, path, Kind::Unnamed)).await
    }

    /// Makes exactly these nodes, by id and URL, the voters, in one step.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_members(&self, members: &[(u64, &str)]) -> Result<Members, Error> {
        let members: Vec<_> =
            members.iter().map(|(id, url)| json!({"id": id, "url": url})).collect();
        let call = Call::of_node(Method::PUT, "/v1/cluster/members", Kind::Repeatable);
        self.json(call.json(&json!({"members": members}))).await
    }

    /// Lets the node that answers write its database file anew, without holes.
    ///
    /// # Errors
    /// See [`Error`]; `conflict` when it does so already.
    pub async fn compact(&self) -> Result<Compaction, Error> {
        let call = Call::of_node(Method::POST, "/v1/admin/compact", Kind::Unnamed);
        self.json(Call { wait: WHOLE_FILES, ..call }).await
    }

    /// Lets the node that answers read all of its files, and repair what is damaged.
    ///
    /// # Errors
    /// See [`Error`]; `conflict` when it does so already.
    pub async fn scrub(&self) -> Result<Scrub, Error> {
        let call = Call::of_node(Method::POST, "/v1/admin/scrub", Kind::Unnamed);
        self.json(Call { wait: WHOLE_FILES, ..call }).await
    }

    /// Which lines the node that answers writes to its log.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn log_filter(&self) -> Result<LogFilter, Error> {
        self.json(Call::of_node(Method::GET, "/v1/admin/log", Kind::Read)).await
    }

    /// Lets the node that answers write other lines, such as `mmapd=debug,mmapd::raft=trace`,
    /// for a while or until its settings are read again.
    ///
    /// # Errors
    /// See [`Error`]; `bad-request` when the filter makes no sense.
    pub async fn set_log_filter(
        &self,
        filter: &str,
        lasts: Option<Duration>,
    ) -> Result<LogFilter, Error> {
        let mut body = json!({"filter": filter});
        if let Some(lasts) = lasts {
            body["for"] = show_duration(lasts).into();
        }
        let call = Call::of_node(Method::PUT, "/v1/admin/log", Kind::Repeatable);
        self.json(call.json(&body)).await
    }

    /// The whole store as of one revision, in the form that `mmapd restore` takes.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::AsyncWriteExt;
    /// let mut out = Vec::new();
    /// let mut backup = client.backup().await?;
    /// while let Some(bytes) = backup.next().await? {
    ///     out.write_all(&bytes).await?;
    /// }
    /// println!("revision {}", backup.revision);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn backup(&self) -> Result<Backup, Error> {
        let answer = self.stream(Call::new(Method::GET, "/v1/backup", Kind::Read)).await?;
        let revision = answer.text("mmapd-revision").and_then(|text| text.parse().ok());
        let lacks = || Error::Unexpected("a backup without its revision".into());
        Ok(Backup {
            revision: revision.ok_or_else(lacks)?,
            digest: answer.text("mmapd-digest").unwrap_or_default().to_owned(),
            body: answer.rest,
        })
    }
}

/// A backup that is taken as it comes.
#[derive(Debug)]
pub struct Backup {
    /// The revision that it is of.
    pub revision: u64,
    /// The digest of that state, in hex.
    pub digest: String,
    body: Option<Body>,
}

impl Backup {
    /// More of it; `None`: that was all.
    ///
    /// # Errors
    /// [`Error::Broken`]: what came is not all.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(body) = &mut self.body else { return Ok(None) };
        body.next().await
    }
}

//! `mmapctl` status, cluster, member, leader, compact, scrub and log: for who looks after nodes.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::endpoints::{each, span};
use super::show;
use super::{Common, Failure, Output};
use crate::client::{Error, Members, Role, Status};
use crate::config::show_duration;

/// A node that has said nothing for so long is shown as gone.
const PATIENCE: Duration = Duration::from_secs(5);

fn role(role: Role) -> String {
    let name = match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
    };
    name.into()
}

/// Prints what each of the endpoints says of itself.
///
/// # Errors
/// 5 when one of them cannot be asked; what the others say is printed.
pub(super) async fn status(common: &Common) -> Result<(), Failure> {
    let mut asked = Vec::new();
    for (url, node) in common.endpoints.iter().zip(each(common, PATIENCE)?) {
        asked.push((url, tokio::spawn(async move { node.status().await })));
    }
    let mut rows = Vec::new();
    let mut gone = None;
    for (url, answer) in asked {
        let answer = answer.await.map_err(|error| Failure::other(error.to_string()))?;
        if common.output == Output::Json {
            show::json(&match &answer {
                Ok(status) => json!({"endpoint": url, "status": status}),
                Err(error) => json!({"endpoint": url, "error": error.to_string()}),
            })?;
        }
        rows.push(row(url, &answer));
        if let Err(error) = answer {
            gone = Some(Failure::of_read(error));
        }
    }
    if common.output != Output::Json {
        let head = [
            "ENDPOINT", "ID", "ROLE", "TERM", "LEADER", "REVISION", "APPLIED", "KEYS", "DB", "LOG",
            "VERSION", "ALARMS",
        ];
        show::table(&head, &rows)?;
    }
    gone.map_or(Ok(()), Err)
}

fn row(url: &str, answer: &Result<Status, Error>) -> Vec<String> {
    let Ok(it) = answer else {
        return vec![url.into(), "-".into(), "unavailable".into()];
    };
    let alarms = if it.alarms.is_empty() { "-".into() } else { it.alarms.join(",") };
    vec![
        url.into(),
        it.id.to_string(),
        role(it.role),
        it.term.to_string(),
        show::maybe(it.leader),
        it.revision.to_string(),
        format!("{}/{}", it.applied_index, it.commit_index),
        it.keys.to_string(),
        show::size(it.db_size_bytes),
        show::size(it.log_size_bytes),
        it.version.clone(),
        alarms,
    ]
}

/// Prints the members, as one node knows them.
///
/// # Errors
/// See [`Failure`].
pub(super) async fn cluster(common: &Common) -> Result<(), Failure> {
    let members = common.client()?.members().await.map_err(Failure::of_read)?;
    table(common, &members)
}

fn table(common: &Common, all: &Members) -> Result<(), Failure> {
    if common.output == Output::Json {
        return show::json(all);
    }
    let row = |it: &crate::client::Member| {
        let contact = it.last_contact_ms.map(|ms| show_duration(Duration::from_millis(ms)));
        vec![
            it.id.to_string(),
            show::text(it.url.as_bytes()),
            role(it.role),
            if it.voter { "yes" } else { "no" }.into(),
            show::maybe(it.lag),
            show::maybe(contact),
        ]
    };
    let rows: Vec<_> = all.members.iter().map(row).collect();
    show::table(&["ID", "URL", "ROLE", "VOTER", "LAG", "LAST CONTACT"], &rows)?;
    let changing = if all.changing { ", a change is under way" } else { "" };
    let (term, node) = (all.term, all.node);
    show::line(&format!(
        "cluster {}, term {term}, as node {node} knows it{changing}",
        all.cluster_id
    ))
}

/// Who belongs to the cluster.
#[derive(Subcommand, Debug)]
pub(super) enum Member {
    /// Takes a node in; it votes once it is caught up.
    Add {
        /// Its id.
        id: u64,
        /// Where the others reach it.
        url: String,
    },
    /// Gives a learner a vote.
    Promote {
        /// Which.
        id: u64,
    },
    /// Takes a voter's vote; it goes on following.
    Demote {
        /// Which.
        id: u64,
    },
    /// Says where a member is reached now.
    Url {
        /// Which.
        id: u64,
        /// Where the others reach it.
        url: String,
    },
    /// Takes a member out.
    Remove {
        /// Which.
        id: u64,
    },
    /// Makes exactly these the voters, in one step.
    Set {
        /// ID=URL of each.
        #[arg(required = true, value_parser = member)]
        member: Vec<(u64, String)>,
    },
}

fn member(text: &str) -> Result<(u64, String), String> {
    let (id, url) = text.split_once('=').ok_or("ID=URL is needed")?;
    Ok((id.parse().map_err(|_| format!("{id:?} is no id"))?, url.to_owned()))
}

impl Member {
    /// Does it, and prints the members.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let client = common.client()?;
        let members = match self {
            Self::Add { id, url } => client.add_member(*id, url).await?,
            Self::Promote { id } => client.set_voter(*id, true).await?,
            Self::Demote { id } => client.set_voter(*id, false).await?,
            Self::Url { id, url } => client.set_url(*id, url).await?,
            Self::Remove { id } => client.remove_member(*id).await?,
            Self::Set { member } => {
                let all: Vec<_> = member.iter().map(|(id, url)| (*id, url.as_str())).collect();
                client.set_members(&all).await?
            }
        };
        table(common, &members)
    }
}

/// Who leads, or shall.
#[derive(Args, Debug)]
pub(super) struct Leader {
    /// Moves leadership: to this node, or without an id to the one that is most caught up.
    #[arg(long, value_name = "ID", num_args = 0..=1)]
    #[expect(clippy::option_option, reason = "the option, and its value")]
    transfer: Option<Option<u64>>,
}

impl Leader {
    /// Prints who leads.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let client = common.client()?;
        let leader = match self.transfer {
            Some(to) => client.transfer_leadership(to).await?,
            None => client.leader().await.map_err(Failure::of_read)?,
        };
        show::either(common.output, &leader, || {
            format!("node {} at {} leads, term {}", leader.id, leader.url, leader.term)
        })
    }
}

/// Lets the first endpoint write its database anew, without holes.
///
/// # Errors
/// See [`Failure`].
pub(super) async fn compact(common: &Common) -> Result<(), Failure> {
    let done = common.client()?.compact().await?;
    show::either(common.output, &done, || {
        let (before, after) = (show::size(done.before_bytes), show::size(done.after_bytes));
        format!("{before} before, {after} after, {} in use", show::size(done.live_bytes))
    })
}

/// Lets the first endpoint read all of its files.
///
/// # Errors
/// 1 when something is damaged.
pub(super) async fn scrub(common: &Common) -> Result<(), Failure> {
    let done = common.client()?.scrub().await.map_err(Failure::of_read)?;
    show::either(common.output, &done, || {
        let (log, db) = (show::size(done.log_bytes), show::size(done.db_bytes));
        let head = format!("{log} of the log and {db} of the database read");
        let found = done.findings.iter();
        let found = found.map(|it| format!("{} at {}: {}", it.file, it.offset, it.what));
        std::iter::once(head).chain(found).collect::<Vec<_>>().join("\n")
    })?;
    match done.findings.len() {
        0 => Ok(()),
        damaged => Err(Failure::other(format!("{damaged} places are damaged"))),
    }
}

/// Which lines the first endpoint writes to its log.
#[derive(Args, Debug)]
pub(super) struct Log {
    /// Lets it write these: mmapd=debug,mmapd::raft=trace. Without it, prints what is in effect.
    filter: Option<String>,
    /// For so long; else until its settings are read again.
    #[arg(long = "for", value_name = "TIME", value_parser = span, requires = "filter")]
    lasts: Option<Duration>,
}

impl Log {
    /// Prints what is in effect.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let client = common.client()?;
        let log = match &self.filter {
            Some(filter) => client.set_log_filter(filter, self.lasts).await?,
            None => client.log_filter().await.map_err(Failure::of_read)?,
        };
        show::either(common.output, &log, || {
            let left = log.remaining_ms.map(|ms| show_duration(Duration::from_millis(ms)));
            let left = left.map(|left| format!(", for {left}")).unwrap_or_default();
            format!("{}{left}; configured {}", log.filter, log.configured)
        })
    }
}

//! `mmapctl` lease and lock.

use std::time::Duration;

use clap::Subcommand;

use super::endpoints::span;
use super::hold::Run;
use super::show;
use super::{Common, Failure, Output};
use crate::client::{Client, Lock as Held, LockOptions};

/// Pages of lists are at most so long.
const PAGE: u64 = 1000;

/// Time that ends unless it is kept alive, with the keys that hang on it.
#[derive(Subcommand, Debug)]
pub(super) enum Lease {
    /// Makes one, and prints its id.
    Grant {
        /// How long it lasts without a sign of life: 30, 5m.
        #[arg(value_parser = span)]
        ttl: Duration,
        /// An id of one's own.
        #[arg(long)]
        id: Option<u64>,
    },
    /// Lets some begin anew, once.
    #[command(name = "keepalive")]
    KeepAlive {
        /// Which.
        #[arg(required = true)]
        id: Vec<u64>,
    },
    /// Ends one, with its keys and locks.
    Revoke {
        /// Which.
        id: u64,
    },
    /// How long one still lasts, and what hangs on it.
    Show {
        /// Which.
        id: u64,
    },
    /// All of them.
    Ls,
}

impl Lease {
    /// Does it.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let client = common.client()?;
        match self {
            Self::Grant { ttl, id } => {
                let lease = match id {
                    Some(id) => client.grant_as(*id, *ttl).await?,
                    None => client.grant(*ttl).await?,
                };
                show::either(common.output, &lease, || lease.id.to_string())
            }
            Self::KeepAlive { id } => {
                let leases = client.keep_all_alive(id).await?;
                if common.output == Output::Json {
                    show::json(&leases)?;
                } else {
                    let row =
                        |it: &crate::client::Lease| vec![it.id.to_string(), show::span(it.ttl)];
                    show::table(&["LEASE", "TTL"], &leases.iter().map(row).collect::<Vec<_>>())?;
                }
                match leases.iter().find(|lease| lease.ttl.is_none()) {
                    Some(over) => Err(Failure::not_found(format!("lease {} is over", over.id))),
                    None => Ok(()),
                }
            }
            Self::Revoke { id } => {
                let done = client.revoke(*id).await?;
                show::either(common.output, &done, || format!("{} keys removed", done.deleted))
            }
            Self::Show { id } => {
                let lease = client.lease(*id).await.map_err(Failure::of_read)?;
                let lease =
                    lease.ok_or_else(|| Failure::not_found(format!("there is no lease {id}")))?;
                show::either(common.output, &lease, || {
                    let (ttl, left) = (show::span(Some(lease.ttl)), show::span(Some(lease.left)));
                    let head = format!("{left} of {ttl} left, {} keys", lease.keys);
                    let keys = lease.attached.iter().flatten().map(|key| show::text(key));
                    std::iter::once(head).chain(keys).collect::<Vec<_>>().join("\n")
                })
            }
            Self::Ls => Self::list(&client, common.output).await,
        }
    }

    async fn list(client: &Client, output: Output) -> Result<(), Failure> {
        let mut table = show::Table::new(&["LEASE", "TTL", "LEFT", "KEYS"]);
        let mut after = 0;
        loop {
            let page = client.leases(after, PAGE).await.map_err(Failure::of_read)?;
            if output == Output::Json {
                page.leases.iter().try_for_each(show::json)?;
            } else {
                let row = |it: &crate::client::LeaseInfo| {
                    let (ttl, left) = (show::span(Some(it.ttl)), show::span(Some(it.left)));
                    vec![it.id.to_string(), ttl, left, it.keys.to_string()]
                };
                table.rows(&page.leases.iter().map(row).collect::<Vec<_>>())?;
            }
            match page.next {
                Some(next) if page.more && !show::gone() => after = next,
                _ => return Ok(()),
            }
        }
    }
}

/// Locks with tokens that the cluster enforces.
#[derive(Subcommand, Debug)]
pub(super) enum Lock {
    /// Runs a command while holding a lock: it finds the token in MMAPD_FENCE, as --fence takes it.
    Run(Run),
    /// Takes one, and prints its token; it must be kept alive by its lease.
    Acquire {
        /// Its name.
        name: String,
        /// How long it is held without a sign of life.
        #[arg(long, value_parser = span, default_value = "30s", conflicts_with = "lease")]
        ttl: Duration,
        /// Held by this lease instead.
        #[arg(long, value_name = "ID")]
        lease: Option<u64>,
        /// Waits for it so long.
        #[arg(long, value_parser = span)]
        wait: Option<Duration>,
        /// For people: who has it.
        #[arg(long)]
        owner: Option<String>,
    },
    /// Gives one back; that it is held no more is no error.
    Release {
        /// Its name.
        name: String,
        /// As it was given.
        #[arg(id = "LOCK_TOKEN", value_name = "TOKEN")]
        token: u64,
    },
    /// Who holds one, and who waits for it.
    Show {
        /// Its name.
        name: String,
    },
    /// All that are held.
    Ls,
}

impl Lock {
    /// Does it.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let client = common.client()?;
        match self {
            Self::Run(run) => run.run(common).await,
            Self::Acquire { name, ttl, lease, wait, owner } => {
                let (ttl, lease) = (Some(*ttl), *lease);
                let how = LockOptions { ttl, lease, wait: *wait, owner: owner.clone() };
                let lock = client.lock(name, &how).await?;
                show::either(common.output, &lock, || {
                    format!("token {}, lease {}", lock.token, lock.lease)
                })
            }
            Self::Release { name, token } => {
                let name = bytes::Bytes::copy_from_slice(name.as_bytes());
                let (ticket, lease, owner) = (0, 0, String::new());
                let held = Held { name, token: *token, ticket, lease, owner };
                client.unlock(&held).await?;
                Ok(())
            }
            Self::Show { name } => {
                let info = client.lock_info(name).await.map_err(Failure::of_read)?;
                let info =
                    info.ok_or_else(|| Failure::not_found(format!("nobody holds lock {name:?}")))?;
                show::either(common.output, &info, || {
                    let Held { token, lease, owner, .. } = &info.holder;
                    let owner = show::text(owner.as_bytes());
                    let head = format!("held by {owner:?}, token {token}, lease {lease}");
                    let waits = info.waiting.iter();
                    let waits = waits.map(|it| format!("waits: {:?}", it.owner));
                    std::iter::once(head).chain(waits).collect::<Vec<_>>().join("\n")
                })
            }
            Self::Ls => Self::list(&client, common.output).await,
        }
    }

    async fn list(client: &Client, output: Output) -> Result<(), Failure> {
        let mut table = show::Table::new(&["LOCK", "TOKEN", "LEASE", "OWNER"]);
        let mut after = bytes::Bytes::new();
        loop {
            let page = client.locks(&after, PAGE).await.map_err(Failure::of_read)?;
            if output == Output::Json {
                page.locks.iter().try_for_each(show::json)?;
            } else {
                let row = |it: &Held| {
                    let owner = show::short(it.owner.as_bytes());
                    vec![show::text(&it.name), it.token.to_string(), it.lease.to_string(), owner]
                };
                table.rows(&page.locks.iter().map(row).collect::<Vec<_>>())?;
            }
            match page.locks.last() {
                Some(last) if page.more && !show::gone() => after = last.name.clone(),
                _ => return Ok(()),
            }
        }
    }
}

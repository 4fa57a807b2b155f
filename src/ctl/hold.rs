//! `mmapctl lock run`: a command that runs while a lock is held, and no longer.
//!
//! The lock is lost when its lease ends, which the session tells, or when somebody gives it back
//! by its token, which only a look at the lock tells. Then the command is killed. A loss that no
//! look has seen is seen at the end, when the lock is given back and was not ours any more.
//!
//! The command has a process group of its own, and what it starts is in there too: signals reach
//! all of it. Except where it may read a terminal: there it must stay in the group that has the
//! terminal, which is ours and may have others in it, so that signals are sent to it alone.
//!
//! Left out: what leaves that group on purpose, and SIGKILL of this program, after which the
//! command runs on; what it writes with the token is refused then.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};

use super::endpoints::span;
use super::signals::Signals;
use super::{Common, Failure};
use crate::client::{Client, Lock as Held, LockOptions, Session};

/// What to run.
#[derive(Args, Debug)]
pub(super) struct Run {
    /// The lock's name.
    name: String,
    /// The command, after --, with its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
    /// It is free so long after this program is gone without a word.
    #[arg(long, value_parser = span, default_value = "10s")]
    ttl: Duration,
    /// Waits for the lock so long; 4 is the exit code if that was not enough.
    #[arg(long, value_parser = span, default_value = "30s")]
    wait: Duration,
    /// For people: who has it.
    #[arg(long)]
    owner: Option<String>,
}

impl Run {
    /// The command's own exit code; the lock is given back whatever became of it.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        // A connection that died must be noticed while there is time to keep the lease alive.
        let nodes = common.endpoints.iter().cloned();
        let client = &common.client_of(nodes)?.patience(Duration::ZERO).build()?;
        let session = client.session(self.ttl).await?;
        let lease = Some(session.lease());
        let owner = self.owner.clone();
        let how = LockOptions { ttl: None, lease, wait: Some(self.wait), owner };
        // While it waits in the queue, the end of the session is the end of its place.
        let outcome = tokio::select! {
            _ = signals.next() => Err(Failure::other("ended while it waited")),
            lock = client.lock(&self.name, &how) => match lock {
                Ok(lock) => {
                    let code = self.hold(client, &lock, &session, &mut signals).await;
                    code.map(|code| (lock, code))
                }
                Err(error) => Err(error.into()),
            },
        };
        let (lock, code) = match outcome {
            Ok(ended) => ended,
            Err(failure) => {
                // With the lease the lock ends, or the place; after its time it does so by itself.
                let _ = tokio::time::timeout(self.ttl, session.end()).await;
                return Err(failure);
            }
        };
        let kept = client.unlock(&lock).await;
        let ended = if kept.is_ok() { session.end().await } else { Ok(()) };
        match (code, kept) {
            (0, Ok(true)) => Ok(ended?),
            (0, Ok(false)) => Err(Failure::unavailable(LOST)),
            (0, Err(error)) => Err(error.into()),
            (code, Ok(false)) => Err(Failure::of_program(code, LOST)),
            (code, Ok(true) | Err(_)) => Err(Failure::of_program(code, "")),
        }
    }

    /// The exit code of the command, which ended by itself.
    async fn hold(
        &self,
        client: &Client,
        lock: &Held,
        session: &Session,
        signals: &mut Signals,
    ) -> Result<u8, Failure> {
        let mut job = Job::start(&self.command, &format!("{}:{}", self.name, lock.token))?;
        let mut taken = pin!(taken(client, lock, self.ttl / 3));
        let status = loop {
            tokio::select! {
                status = job.child.wait() => break status.map_err(|error| job.wrong(&error))?,
                signal = signals.next() => job.pass_on(signal),
                // Somebody else may hold it now; what carries the token is refused anyway.
                () = session.lost() => return Err(job.kill("may be").await),
                () = &mut taken => return Err(job.kill("is").await),
            }
        };
        Ok(code_of(status))
    }
}

/// Said when the command has ended before anybody knew.
const LOST: &str = "the lock was lost before the command ended";

/// Comes back when the lock is held no more, or not by this token.
async fn taken(client: &Client, lock: &Held, pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        match client.lock_info(&lock.name).await {
            Ok(Some(info)) if info.holder.token == lock.token => {}
            Ok(Some(_) | None) => return,
            // Who cannot be asked for long ends the session. Who may not ask is told at the end.
            Err(_) => {}
        }
    }
}

/// As shells say it.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or(128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(1)
}

/// The command under way.
struct Job {
    child: Child,
    pid: Pid,
    name: String,
    /// It has a group of its own, named by its process id.
    group: bool,
}

impl Job {
    fn start(command: &[OsString], fence: &str) -> Result<Self, Failure> {
        let name = command[0].to_string_lossy().into_owned();
        let group = !io::stdin().is_terminal();
        let mut new = Command::new(&command[0]);
        new.args(&command[1..]).env("MMAPD_FENCE", fence).kill_on_drop(true);
        if group {
            new.process_group(0);
        }
        let started = new.spawn().map_err(|error| Failure::other(format!("{name}: {error}")));
        let child = started?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let pid = pid.ok_or_else(|| Failure::other(format!("{name} has no process id")))?;
        Ok(Self { child, pid, name, group })
    }

    fn wrong(&self, error: &io::Error) -> Failure {
        Failure::other(format!("{}: {error}", self.name))
    }

    /// To all of it that can be reached. Only before it was waited for: its id is its own as long.
    fn send(&self, signal: Signal) {
        // That it is gone already is as good.
        let _ = if self.group {
            kill_process_group(self.pid, signal)
        } else {
            kill_process(self.pid, signal)
        };
    }

    /// We are told to end: the command decides what that means, under the lock.
    fn pass_on(&self, signal: Signal) {
        // A terminal sends Ctrl-C to the command as well, and many take the second for urgent.
        if self.group || signal != Signal::INT {
            self.send(signal);
        }
    }

    /// Without its lock it must not go on.
    async fn kill(mut self, lost: &str) -> Failure {
        self.send(Signal::KILL);
        // Nothing is known of it if this fails, and nothing is left to do.
        let _ = self.child.wait().await;
        let rest = if self.group {
            ", with all that it had started"
        } else {
            "; what it had started itself may still run"
        };
        Failure::unavailable(format!("the lock {lost} lost, and the command was killed{rest}"))
    }
}

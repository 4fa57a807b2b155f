//! `mmapctl playground`: a cluster on this machine, to watch and to break.
//!
//! The nodes are processes of their own, in process groups of their own, so that Ctrl-C reaches
//! this program alone, which then ends them in order. They end with it on SIGINT, SIGTERM,
//! SIGHUP, SIGQUIT, on `quit` and on every error; only after SIGKILL of this program they go on.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

use super::endpoints::chance;
use super::show;
use super::signals::Signals;
use super::{Common, Failure};
use crate::client::{Client, Role, Status};

/// How many nodes there may be.
const MOST: u64 = 5;
/// How long a cluster may take to have a leader.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a node may take to end before it is killed.
const END: Duration = Duration::from_secs(10);
/// Between two looks.
const TICK: Duration = Duration::from_millis(200);

/// A line for whoever watches. The cluster goes on when nobody does.
macro_rules! say {
    ($($what:tt)*) => {
        drop(show::line(&format!($($what)*)))
    };
}

/// What to start.
#[derive(Args, Debug)]
pub(super) struct Playground {
    /// How many nodes: 1, 3 or 5.
    #[arg(long, default_value_t = 3)]
    nodes: u16,
    /// The first node's port, the others follow; 0 picks free ones.
    #[arg(long, default_value_t = 3001)]
    port: u16,
    /// The mmapd program; by default the one beside this program.
    #[arg(long, value_name = "PATH")]
    mmapd: Option<PathBuf>,
    /// Where data is kept; by default in a temporary directory that is removed at the end.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// One node, and its process while it has one.
struct Node {
    id: u64,
    port: u16,
    home: PathBuf,
    child: Option<Child>,
    client: Client,
}

impl Node {
    fn start(&mut self, mmapd: &Path) -> Result<(), Failure> {
        let wrong = |what: &Path, error| Failure::other(format!("{}: {error}", what.display()));
        let log = self.home.join("node.log");
        let open = || File::options().create(true).append(true).open(&log);
        let (out, err) = (open(), open());
        let mut command = Command::new(mmapd);
        command.arg("--config").arg("node.toml").current_dir(&self.home);
        for (name, _) in std::env::vars_os() {
            // Settings for another node are none for these.
            if name == "PORT" || name.to_string_lossy().starts_with("MMAPD_") {
                command.env_remove(name);
            }
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(out.map_err(|error| wrong(&log, error))?)
            .stderr(err.map_err(|error| wrong(&log, error))?)
            .process_group(0)
            .spawn()
            .map_err(|error| wrong(mmapd, error))?;
        self.child = Some(child);
        Ok(())
    }

    /// Is there a process? One that ended by itself is told of once.
    fn runs(&mut self) -> bool {
        let Some(child) = &mut self.child else { return false };
        if let Ok(Some(status)) = child.try_wait() {
            let log = self.home.join("node.log");
            say!("node {} ended by itself: {status}; see {}", self.id, log.display());
            self.child = None;
        }
        self.child.is_some()
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // One that is gone has ended by itself, which is said where that is looked for.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only when it is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// All of them; whoever drops this has killed them.
struct Cluster {
    nodes: Vec<Node>,
    mmapd: PathBuf,
    dir: PathBuf,
    kept: bool,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
        if !self.kept
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            show::aside(&format!("{} stays behind: {error}", self.dir.display()));
        }
    }
}

impl Playground {
    /// Runs until it is told to end.
    pub(super) async fn run(&self, _common: &Common) -> Result<(), Failure> {
        if ![1, 3, 5].contains(&self.nodes) {
            return Err(Failure::usage("--nodes is 1, 3 or 5"));
        }
        let mut signals = Signals::new()?;
        let mut cluster = self.prepare()?;
        let result = tokio::select! {
            result = cluster.serve() => result,
            _ = signals.next() => Ok(()),
        };
        say!("ending {} nodes", cluster.nodes.len());
        cluster.end().await;
        result
    }

    /// Directories and configuration files.
    fn prepare(&self) -> Result<Cluster, Failure> {
        let ports = self.ports()?;
        let mmapd = match &self.mmapd {
            Some(path) => path.clone(),
            None => std::env::current_exe()
                .map_err(|error| Failure::other(error.to_string()))?
                .with_file_name("mmapd"),
        };
        let wrong = |what: &Path, error: std::io::Error| {
            Failure::usage(format!("{}: {error}", what.display()))
        };
        let mmapd = fs::canonicalize(&mmapd).map_err(|error| wrong(&mmapd, error))?;
        let name = format!("mmapctl-playground-{:016x}", chance());
        if let Some(dir) = &self.dir {
            self.refuse_another_cluster(dir)?;
        }
        let dir = self.dir.clone().unwrap_or_else(|| std::env::temp_dir().join(name));
        fs::create_dir_all(&dir).map_err(|error| wrong(&dir, error))?;
        let kept = self.dir.is_some();
        let mut cluster = Cluster { nodes: Vec::new(), mmapd, dir: dir.clone(), kept };
        for (id, &port) in (1..).zip(&ports) {
            let home = dir.join(format!("node{id}"));
            fs::create_dir_all(&home).map_err(|error| wrong(&home, error))?;
            let file = home.join("node.toml");
            fs::write(&file, config(id, port, &ports)).map_err(|error| wrong(&file, error))?;
            let client = Client::builder([format!("http://127.0.0.1:{port}")]);
            let client = client.attempts(1).timeout(Duration::from_secs(1)).build()?;
            cluster.nodes.push(Node { id, port, home, child: None, client });
        }
        Ok(cluster)
    }

    /// Who belongs to a cluster is in its data: to start more of them, or fewer, gives a cluster
    /// that waits for nodes that are not there, or nodes that belong to none.
    fn refuse_another_cluster(&self, dir: &Path) -> Result<(), Failure> {
        let there = |id: &u64| dir.join(format!("node{id}")).exists();
        let nodes = (1..=MOST).filter(there).count();
        if nodes == 0 || nodes == usize::from(self.nodes) {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "{} has a cluster of {nodes}: say --nodes {nodes}, or name another folder",
            dir.display()
        )))
    }

    /// Ports that nobody listens on now.
    fn ports(&self) -> Result<Vec<u16>, Failure> {
        // Held until all are found, so that none is picked twice.
        let mut held = Vec::new();
        for place in 0..self.nodes {
            let port = match self.port {
                0 => 0,
                first => first
                    .checked_add(place)
                    .ok_or_else(|| Failure::usage("there is no port above 65535"))?,
            };
            held.push(TcpListener::bind(("127.0.0.1", port)).map_err(|error| {
                Failure::other(format!("port {port}: {error}; try --port 0, which picks free ones"))
            })?);
        }
        let port = |held: &TcpListener| held.local_addr().map(|addr| addr.port());
        let ports: Result<_, _> = held.iter().map(port).collect();
        ports.map_err(|error| Failure::other(error.to_string()))
    }
}

fn config(id: u64, port: u16, ports: &[u16]) -> String {
    let mut text = format!(
        "[node]\nid = {id}\nlisten = \"127.0.0.1:{port}\"\n\n\
         [storage]\ndb = \"db.mmapd\"\nlog = \"log\"\n"
    );
    for (peer, port) in (1_u64..).zip(ports) {
        write!(text, "\n[[cluster.peers]]\nid = {peer}\nurl = \"http://127.0.0.1:{port}\"\n")
            .expect("a string grows");
    }
    text
}

impl Cluster {
    async fn serve(&mut self) -> Result<(), Failure> {
        let mmapd = self.mmapd.clone();
        for node in &mut self.nodes {
            node.start(&mmapd)?;
        }
        let since = Instant::now();
        let (mut leader, term) = loop {
            if let Some(found) = self.leader().await {
                break found;
            }
            if self.nodes.iter_mut().any(|node| !node.runs()) {
                return Err(Failure::other(self.last_words()));
            }
            if since.elapsed() > PATIENCE {
                return Err(Failure::other(format!("no leader within {PATIENCE:?}")));
            }
            tokio::time::sleep(TICK).await;
        };
        self.welcome();
        say!("node {leader} leads, term {term}");
        let mut lines = stdin();
        let mut open = true;
        loop {
            let line = tokio::select! {
                line = lines.recv(), if open => line,
                () = tokio::time::sleep(TICK) => {
                    self.look(&mut leader).await;
                    continue;
                }
            };
            match line {
                // Nobody types; the cluster goes on until a signal.
                None => open = false,
                Some(line) if line.trim() == "quit" => return Ok(()),
                Some(line) => self.obey(line.trim()).await,
            }
        }
    }

    /// Says who leads, when that has changed. 0: nobody.
    async fn look(&mut self, leader: &mut u64) {
        for node in &mut self.nodes {
            node.runs();
        }
        match self.leader().await {
            Some((id, term)) if id != *leader => {
                say!("node {id} leads, term {term}");
                *leader = id;
            }
            None if *leader != 0 => {
                say!("nobody leads");
                *leader = 0;
            }
            Some(_) | None => {}
        }
    }

    async fn statuses(&self) -> Vec<Option<Status>> {
        let mut all = Vec::new();
        for node in &self.nodes {
            let asked = tokio::time::timeout(Duration::from_millis(500), node.client.status());
            all.push(if node.child.is_some() {
                asked.await.ok().and_then(Result::ok)
            } else {
                None
            });
        }
        all
    }

    /// Who leads in the latest term, with a majority that agrees.
    async fn leader(&self) -> Option<(u64, u64)> {
        let all = self.statuses().await;
        let known = || all.iter().flatten();
        let leads = known().filter(|it| it.role == Role::Leader).max_by_key(|it| it.term)?;
        let agree = known().filter(|it| (it.term, it.leader) == (leads.term, Some(leads.id)));
        (2 * agree.count() > all.len()).then_some((leads.id, leads.term))
    }

    fn welcome(&self) {
        for node in &self.nodes {
            let (id, url) = (node.id, node.url());
            let pid = node.child.as_ref().map_or(0, Child::id);
            say!("node {id}  {url}  pid {pid}  dashboard {url}/ui  API {url}/docs");
        }
        let urls: Vec<String> = self.nodes.iter().map(Node::url).collect();
        say!("data in {}{}", self.dir.display(), if self.kept { "" } else { ", until the end" });
        say!("try:  curl -X PUT {}/v1/keys/color -d blue", urls[0]);
        say!("or:   export MMAPD_ENDPOINTS={}", urls.join(","));
        say!("type: kill N, start N, pause N, resume N, status, quit");
    }

    async fn obey(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word.is_empty() {
            return;
        }
        if word == "status" {
            return self.print().await;
        }
        let mmapd = self.mmapd.clone();
        let wanted = rest.trim().parse::<u64>().ok();
        let Some(node) = self.nodes.iter_mut().find(|node| Some(node.id) == wanted) else {
            say!(
                "kill N, start N, pause N, resume N, status or quit; N is 1 to {}",
                self.nodes.len()
            );
            return;
        };
        let (id, runs) = (node.id, node.runs());
        match (word, runs) {
            ("start", true) => say!("node {id} runs"),
            ("start", false) => match node.start(&mmapd) {
                Ok(()) => {
                    say!("node {id} started, pid {}", node.child.as_ref().map_or(0, Child::id))
                }
                Err(failure) => drop(failure.report()),
            },
            ("kill" | "pause" | "resume", false) => say!("node {id} does not run"),
            ("kill", true) => {
                node.kill();
                say!("node {id} killed");
            }
            ("pause", true) => {
                node.signal(Signal::STOP);
                say!("node {id} paused");
            }
            ("resume", true) => {
                node.signal(Signal::CONT);
                say!("node {id} resumed");
            }
            (_, _) => say!("kill N, start N, pause N, resume N, status or quit"),
        }
    }

    async fn print(&mut self) {
        for (node, status) in self.nodes.iter().zip(self.statuses().await) {
            match status {
                Some(it) => say!(
                    "node {}  {:?}  term {}  revision {}  keys {}",
                    node.id,
                    it.role,
                    it.term,
                    it.revision,
                    it.keys
                ),
                None if node.child.is_some() => say!("node {}  does not answer", node.id),
                None => say!("node {}  does not run", node.id),
            }
        }
    }

    /// Ends all in order: none may wait for another that is stopped.
    async fn end(&mut self) {
        for node in &self.nodes {
            node.signal(Signal::CONT);
            node.signal(Signal::TERM);
        }
        let since = Instant::now();
        let gone = |node: &mut Node| {
            node.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
        };
        while since.elapsed() < END && !self.nodes.iter_mut().all(gone) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The ends of the logs of those who do not run.
    fn last_words(&self) -> String {
        let mut text = String::from("a node did not stay up");
        for node in self.nodes.iter().filter(|node| node.child.is_none()) {
            let log = fs::read_to_string(node.home.join("node.log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(3).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            write!(text, "\nnode {}: {}", node.id, last.join("\n")).expect("a string grows");
        }
        text
    }
}

/// Lines that somebody types; ends when nobody can.
fn stdin() -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel(16);
    // A thread that blocks in a read ends with the process only, so it is none of the runtime's.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receive
}

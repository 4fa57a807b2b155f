//! Real `mmapd` processes in a temporary directory, and the smallest HTTP client that can ask
//! them things.
//!
//! Nothing here sleeps for a fixed time: [`wait`] polls a condition until a deadline. Signals go
//! to children of this process only, by their process id, and whatever runs is killed when its
//! [`Node`] is dropped. When a test fails, the ends of all logs are printed.
//!
//! Left out: connection pools, redirects, TLS.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value as Json;

/// Long enough for a loaded machine, short enough for CI.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `ask` answers; panics with `what` after [`PATIENCE`].
pub(crate) fn wait<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    wait_at_most(PATIENCE, what, ask)
}

/// Polls until `ask` answers; panics with `what` after `limit`.
pub(crate) fn wait_at_most<T>(
    limit: Duration,
    what: &str,
    mut ask: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        pause();
    }
}

/// Holds for the whole of `span`, looked at again and again.
pub(crate) fn stays(span: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < span {
        assert!(holds(), "did not stay: {what}");
        pause();
    }
}

/// Between two looks at another process.
#[allow(clippy::disallowed_methods, reason = "another process cannot wake us; this is one poll")]
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// A loopback port nobody listens on, outside of the range the kernel hands out for outgoing
/// connections: a node that is down does not lose its port to a client.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 12_000 + u16::try_from(std::process::id() % 97).expect("small") * 200;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed) % 1_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// One node: its files, how it is started, and the process while it runs.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) port: u16,
    pub(crate) dir: PathBuf,
    /// Where clients find it.
    pub(crate) addr: SocketAddr,
    /// The network namespace it runs in, if not in ours.
    space: Option<String>,
    args: Vec<String>,
    child: Option<Child>,
}

impl Node {
    /// Not started yet. `args` come after the binary's name; `dir` is its working directory.
    pub(crate) fn new(id: u64, port: u16, dir: &Path, args: &[&str]) -> Self {
        fs::create_dir_all(dir).expect("a directory for the node");
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        Self { id, port, dir: dir.to_owned(), addr, space: None, args, child: None }
    }

    /// More lines for its own configuration file, below the one that all nodes share.
    pub(crate) fn tune(&self, more: &str) {
        let mut file = File::options().append(true).open(self.dir.join("node.toml"));
        let file = file.as_mut().expect("the file of a cluster's node");
        file.write_all(more.as_bytes()).expect("a file");
    }

    /// Starts the process; it may take a while to listen, or refuse.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "node {} runs already", self.id);
        let log = || {
            let path = self.log_path();
            File::options().create(true).append(true).open(path).expect("a log file")
        };
        let binary = env!("CARGO_BIN_EXE_mmapd");
        let mut command = Command::new(if self.space.is_some() { "ip" } else { binary });
        if let Some(space) = &self.space {
            // It becomes the binary, so the process id is the right one.
            command.args(["netns", "exec", space, binary]);
        }
        let child = command
            .args(&self.args)
            .current_dir(&self.dir)
            .env_remove("PORT")
            .stdin(Stdio::null())
            .stdout(log())
            .stderr(log())
            .spawn()
            .expect("the binary starts");
        self.child = Some(child);
    }

    /// Starts the process and waits until it serves.
    pub(crate) fn start(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    /// Waits for `/readyz`.
    pub(crate) fn wait_ready(&mut self) {
        let what = format!("node {} is ready", self.id);
        wait(&what, || {
            assert!(self.exited().is_none(), "node {} stopped\n{}", self.id, self.log_tail());
            (self.client().get("/readyz").ok()?.status == 200).then_some(())
        });
    }

    /// How it ended, if it did.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().expect("started").try_wait().expect("it is our child")
    }

    /// Waits for it to end by itself and answers its exit code.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let what = format!("node {} ends", self.id);
        let status = wait(&what, || self.exited());
        self.child = None;
        status.code()
    }

    /// `kill -9`; comes back when the process is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child of ours");
            child.wait().expect("a child of ours");
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("started");
        kill_process(Pid::from_child(child), signal).expect("a child of ours");
    }

    /// From now on the process cannot write at or beyond this offset of any file.
    pub(crate) fn limit_file_size(&self, bytes: u64) {
        let child = self.child.as_ref().expect("started");
        let limit = Rlimit { current: Some(bytes), maximum: None };
        prlimit(Some(Pid::from_child(child)), Resource::Fsize, limit).expect("a child of ours");
    }

    /// The id of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("started").id()
    }

    /// Memory of the process that no file holds, in bytes.
    pub(crate) fn anonymous_bytes(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.expect("Linux says so") << 10
    }

    /// Is there a process?
    pub(crate) fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// A new connection, not opened before it is used.
    pub(crate) fn client(&self) -> Client {
        Client::to(self.addr)
    }

    /// `/v1/status`, if it answers.
    pub(crate) fn status(&self) -> Option<Json> {
        let reply = self.client().get("/v1/status").ok()?;
        (reply.status == 200).then(|| reply.json())
    }

    /// One number of `/v1/status`.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.status()?.get(name)?.as_u64()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("stderr.log")
    }

    /// The last lines it wrote.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read(self.log_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- node {} on port {} wrote last:\n{}",
                self.id,
                self.port,
                self.log_tail()
            );
        }
        self.kill();
    }
}

/// Nodes that know each other, each with a configuration file of its own.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    // After the nodes: fields are dropped in order, so the files outlive the processes.
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Writes the files of `size` nodes; `tuning` is laid over them as a second file.
    pub(crate) fn new(size: u64, tuning: &str) -> Self {
        let local = |_| SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self::at((0..size).map(|_| None).zip((0..size).map(local)).collect(), tuning)
    }

    /// The same, with nodes in these network namespaces, listening there.
    pub(crate) fn at(places: Vec<(Option<String>, SocketAddr)>, tuning: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("tuning.toml"), tuning).expect("a file");
        let addrs: Vec<SocketAddr> = places.iter().map(|&(_, addr)| addr).collect();
        let nodes = (1..).zip(places).map(|(id, (space, addr))| {
            let home = dir.path().join(format!("node{id}"));
            let args = ["--config", "node.toml", "--config", "../tuning.toml"];
            let mut node = Node::new(id, addr.port(), &home, &args);
            (node.addr, node.space) = (addr, space);
            fs::write(home.join("node.toml"), config(id, addr, &addrs)).expect("a file");
            node
        });
        Self { nodes: nodes.collect(), _dir: dir }
    }

    /// Writes the files, starts all and waits until they serve.
    pub(crate) fn start(size: u64, tuning: &str) -> Self {
        let mut cluster = Self::new(size, tuning);
        cluster.start_all();
        cluster
    }

    /// Starts whoever does not run, and waits until all serve.
    pub(crate) fn start_all(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| !node.runs()) {
            node.spawn();
        }
        for node in &mut self.nodes {
            node.wait_ready();
        }
    }

    /// Where in `nodes` the leader is, once one of those that run leads in a term above `term`
    /// and a majority agrees.
    pub(crate) fn leader_after(&self, term: u64) -> (usize, u64) {
        wait("a leader", || self.leader_now(term))
    }

    /// The same, as it is now.
    pub(crate) fn leader_now(&self, term: u64) -> Option<(usize, u64)> {
        let all: Vec<_> = self.nodes.iter().map(|node| node.status().unwrap_or_default()).collect();
        let (at, leads) = all
            .iter()
            .enumerate()
            .filter(|(_, status)| status["role"] == "leader")
            .max_by_key(|(_, status)| status["term"].as_u64())?;
        let follow =
            |s: &&Json| s["term"] == leads["term"] && s["leader"].as_u64() == leads["id"].as_u64();
        let agree = all.iter().filter(follow).count();
        let now = leads["term"].as_u64()?;
        (now > term && 2 * agree > all.len()).then_some((at, now))
    }

    /// Waits until all nodes have applied the same, and answers that index. A status is a picture
    /// that may be some ticks old, so several in a row have to agree.
    pub(crate) fn settle(&self) -> u64 {
        let (mut before, mut looks) = (0, 0);
        wait("all nodes have applied the same", || {
            let now = self.agreed()?;
            looks = if now == before { looks + 1 } else { 0 };
            before = now;
            (looks >= 15).then_some(now)
        })
    }

    /// The applied index, if all nodes say the same.
    fn agreed(&self) -> Option<u64> {
        let fields = ["applied_index", "revision", "term"];
        let look = |node: &Node| -> Option<Vec<u64>> {
            let status = node.status()?;
            fields.iter().map(|name| status[*name].as_u64()).collect()
        };
        let seen: Vec<Vec<u64>> = self.nodes.iter().map(look).collect::<Option<_>>()?;
        seen.iter().all(|one| *one == seen[0]).then(|| seen[0][0])
    }
}

fn config(id: u64, addr: SocketAddr, addrs: &[SocketAddr]) -> String {
    let mut text = format!(
        "[node]\nid = {id}\nlisten = \"{addr}\"\n\n\
         [storage]\ndb = \"db.mmapd\"\nlog = \"log\"\n"
    );
    if !addr.ip().is_loopback() {
        text.push_str("\n[auth]\nopen = true\n");
    }
    for (peer, addr) in (1..).zip(addrs) {
        let peer: u64 = peer;
        write!(text, "\n[[cluster.peers]]\nid = {peer}\nurl = \"http://{addr}\"\n")
            .expect("a string grows");
    }
    text
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// A header by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The revision in the `ETag`.
    pub(crate) fn revision(&self) -> Option<u64> {
        self.header("etag")?.trim_matches('"').parse().ok()
    }

    /// The body as JSON; null if it is none.
    pub(crate) fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A request that got no answer.
#[derive(Debug)]
pub(crate) enum Silence {
    /// It was never sent.
    Refused(io::Error),
    /// Sent, at least in part.
    Lost(io::Error),
}

/// One connection, kept open, opened again after a failure.
#[derive(Debug)]
pub(crate) struct Client {
    addr: SocketAddr,
    timeout: Duration,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    /// To a port on this machine.
    pub(crate) fn new(port: u16) -> Self {
        Self::to(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// To any address.
    pub(crate) fn to(addr: SocketAddr) -> Self {
        Self { addr, timeout: Duration::from_secs(5), stream: None }
    }

    /// How long to wait for bytes.
    pub(crate) fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// `GET`.
    pub(crate) fn get(&mut self, path: &str) -> Result<Reply, Silence> {
        self.ask("GET", path, &[], b"")
    }

    /// `PUT /v1/keys/{key}`.
    pub(crate) fn put(&mut self, key: &str, value: impl AsRef<[u8]>) -> Result<Reply, Silence> {
        self.ask("PUT", &format!("/v1/keys/{key}"), &[], value.as_ref())
    }

    /// `GET /v1/keys/{key}`.
    pub(crate) fn read(&mut self, key: &str) -> Result<Reply, Silence> {
        self.get(&format!("/v1/keys/{key}"))
    }

    /// `DELETE /v1/keys/{key}`.
    pub(crate) fn delete(&mut self, key: &str) -> Result<Reply, Silence> {
        self.ask("DELETE", &format!("/v1/keys/{key}"), &[], b"")
    }

    /// Every key with a prefix, page by page.
    pub(crate) fn list(&mut self, prefix: &str) -> Result<Vec<String>, Silence> {
        let mut keys = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/keys?prefix={prefix}&keys_only=true&limit=500{cursor}");
            let reply = self.get(&path)?;
            assert_eq!(reply.status, 200, "{path}: {}", reply.text());
            let page = reply.json();
            for item in page["items"].as_array().expect("a listing has items") {
                keys.push(item["key"].as_str().expect("a readable key").to_owned());
            }
            match page["next"].as_str() {
                Some(next) if page["more"] == true => cursor = format!("&cursor={next}"),
                _ => return Ok(keys),
            }
        }
    }

    /// Any request.
    pub(crate) fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Reply, Silence> {
        self.send(method, path, headers, body)?;
        self.receive()
    }

    /// The first half of [`Client::ask`].
    pub(crate) fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(), Silence> {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.addr);
        for (name, value) in headers {
            write!(text, "{name}: {value}\r\n").expect("a string grows");
        }
        if method != "GET" {
            write!(text, "Content-Length: {}\r\n", body.len()).expect("a string grows");
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(body);
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => BufReader::new(self.connect().map_err(Silence::Refused)?),
        };
        stream.get_mut().write_all(&bytes).map_err(Silence::Lost)?;
        self.stream = Some(stream);
        Ok(())
    }

    /// The second half of [`Client::ask`].
    pub(crate) fn receive(&mut self) -> Result<Reply, Silence> {
        let mut stream = self.stream.take().expect("something was sent");
        let reply = receive(&mut stream).map_err(Silence::Lost)?;
        if reply.header("connection") != Some("close") {
            self.stream = Some(stream);
        }
        Ok(reply)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.addr, self.timeout)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

fn receive(stream: &mut impl BufRead) -> io::Result<Reply> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let first = line(stream)?;
    let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| bad(&first))?;
    let mut headers = Vec::new();
    loop {
        let text = line(stream)?;
        let Some((name, value)) = text.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut reply = Reply { status, headers, body: Vec::new() };
    if reply.header("transfer-encoding") == Some("chunked") {
        loop {
            let size = line(stream)?;
            let size = u64::from_str_radix(&size, 16).map_err(|_| bad(&size))?;
            stream.take(size).read_to_end(&mut reply.body)?;
            line(stream)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = reply.header("content-length") {
        let length: u64 = length.parse().map_err(|_| bad("content-length"))?;
        let got = stream.take(length).read_to_end(&mut reply.body)?;
        if u64::try_from(got).ok() != Some(length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(reply)
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    if stream.read_line(&mut text)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text.trim_end().to_owned())
}

//! A one-node server in this process, and a client that sends any bytes at all and shows what
//! came back. Nothing sleeps: a read waits for bytes or for the end of the connection.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

use mmapd::config::Config;
use mmapd::machine::{Applied, Command};
use mmapd::metrics::{self, Metrics};
use mmapd::node::{Consistency, Handle, Node};
use tokio::sync::watch;

/// Longer than anything takes, shorter than a test run.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node alone, with files of its own, until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// The node itself, for what no request asks for.
    pub(crate) handle: Handle,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Starts it and waits until it leads.
    pub(crate) fn start(mut config: Config) -> Self {
        let (stop, stopping) = watch::channel(false);
        let (tell, started) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let dir = tempfile::tempdir().expect("a temporary directory");
            config.storage.db = dir.path().join("db.mmapd");
            config.storage.log = dir.path().join("log");
            config.storage.map_max = 1 << 30;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(run(config, stopping, &tell));
        });
        let (address, handle) = started.recv().expect("the server starts");
        Self { address, handle, stop, thread: Some(thread) }
    }

    /// Lets a command happen that has no route, or none that is short.
    pub(crate) fn propose(&self, command: Command) -> Applied {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(self.handle.propose(command, PATIENCE)).expect("it happens")
    }

    /// A new connection.
    pub(crate) fn connect(&self) -> Connection {
        Connection::to(self.address)
    }

    /// One request without a body on a connection of its own.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Reply {
        let mut connection = self.connect();
        connection.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        connection.reply(method == "HEAD").expect("an answer")
    }

    /// `GET` of something in JSON.
    pub(crate) fn json(&self, path: &str) -> serde_json::Value {
        let reply = self.ask("GET", path);
        assert_eq!(reply.status(), 200, "{path}: {}", String::from_utf8_lossy(&reply.body));
        serde_json::from_slice(&reply.body).expect("JSON")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the server panicked");
    }
}

async fn run(
    mut config: Config,
    mut stopping: watch::Receiver<bool>,
    tell: &std::sync::mpsc::Sender<(SocketAddr, Handle)>,
) {
    static NUMBERS: OnceLock<&'static Metrics> = OnceLock::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    config.node.advertise = format!("http://{address}");
    config.bound_to(address);
    let node = Node::start(&config, NUMBERS.get_or_init(metrics::install)).expect("a node");
    let handle = node.handle();
    let edge = tokio::spawn(mmapd::http::serve(listener, handle.clone(), config, stopping.clone()));
    while handle.view(Consistency::Linearizable, PATIENCE).await.is_err() {}
    // The picture that probes show is published a little later.
    while !handle.status().caught_up {
        tokio::task::yield_now().await;
    }
    tell.send((address, handle)).expect("the test waits");
    let _ = stopping.wait_for(|stopping| *stopping).await;
    // Tests leave connections open; nobody waits for those.
    edge.abort();
    node.stop().await.expect("an orderly end");
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    /// `HTTP/1.1 200 OK`.
    pub(crate) line: String,
    /// In the order they came.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line")
    }

    /// By its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// One connection, without any idea of what may be sent over it.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    /// A new one.
    pub(crate) fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("somebody listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        stream.set_nodelay(true).expect("a socket");
        Self { stream, read: Vec::new() }
    }

    /// Sends as much as the server takes; it may have closed already.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends nothing more.
    pub(crate) fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next response; `None`: the connection ended. `head`: it has no body.
    pub(crate) fn reply(&mut self, head: bool) -> Option<Reply> {
        let mut reply = self.head()?;
        let bare = head || matches!(reply.status(), 100..200 | 204 | 304);
        reply.body = match (reply.header("content-length"), reply.header("transfer-encoding")) {
            _ if bare => Vec::new(),
            (Some(length), None) => self.exactly(length.parse().expect("a length")),
            (None, Some("chunked")) => self.chunks(),
            other => panic!("a body of unknown length: {other:?}"),
        };
        Some(reply)
    }

    /// A response that does not end, with so many messages, each of which ends in an empty line.
    pub(crate) fn messages(&mut self, count: usize) -> Reply {
        let mut reply = self.head().expect("an answer");
        let messages = |body: &[u8]| body.windows(2).filter(|part| *part == b"\n\n").count();
        while messages(&reply.body) < count {
            let chunk = self.chunk();
            assert!(!chunk.is_empty(), "it ended");
            reply.body.extend(chunk);
        }
        reply
    }

    /// Waits for this in a response that comes in chunks.
    pub(crate) fn chunks_until(&mut self, text: &str) {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let chunk = self.chunk();
            assert!(!chunk.is_empty(), "it ended without {text}");
            seen.extend(chunk);
        }
    }

    /// The rest of a response in chunks, up to its end, which must come.
    pub(crate) fn rest_of_chunks(&mut self) -> String {
        String::from_utf8(self.chunks()).expect("text")
    }

    fn head(&mut self) -> Option<Reply> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|part| part == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill() {
                assert!(self.read.is_empty(), "half a head: {:?}", self.read.escape_ascii());
                return None;
            }
        };
        let text = String::from_utf8(self.take(end)).expect("a head in ASCII");
        let mut lines = text.split("\r\n").filter(|line| !line.is_empty());
        let line = lines.next().expect("a status line").to_owned();
        let pair = |line: &str| {
            let (name, value) = line.split_once(": ").expect("a header");
            (name.to_ascii_lowercase(), value.to_owned())
        };
        Some(Reply { line, headers: lines.map(pair).collect(), body: Vec::new() })
    }

    /// Waits for the end of the connection, which must come without another byte.
    pub(crate) fn end(&mut self) {
        while self.fill() {}
        assert!(self.read.is_empty(), "more came: {:?}", self.read.escape_ascii());
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut whole = Vec::new();
        loop {
            let chunk = self.chunk();
            if chunk.is_empty() {
                return whole;
            }
            whole.extend(chunk);
        }
    }

    /// The next chunk; the last one is empty.
    fn chunk(&mut self) -> Vec<u8> {
        let end = loop {
            match self.read.windows(2).position(|part| part == b"\r\n") {
                Some(at) => break at + 2,
                None => assert!(self.fill(), "the chunks broke off"),
            }
        };
        let line = String::from_utf8(self.take(end)).expect("a size");
        let size = usize::from_str_radix(line.trim(), 16).expect("a size");
        let chunk = self.exactly(size);
        self.exactly(2);
        chunk
    }

    fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(self.fill(), "the body broke off");
        }
        self.take(count)
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        self.read.drain(..count).collect()
    }

    /// Waits for bytes; `false`: no more will come.
    fn fill(&mut self) -> bool {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.read.extend_from_slice(&bytes[..count]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("the server neither answered nor closed: {error}"),
        }
    }
}

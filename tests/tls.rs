//! TLS: between clients and nodes, and between nodes, from outside.

#[path = "support/process.rs"]
mod process;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mmapd::client::{Client, Error, Role};
use process::{Cluster, Node, wait};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

/// An authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for this machine, and its key.
    fn sign(&self, name: &str) -> (String, String) {
        self.sign_until(name, 2999)
    }

    /// One that is over at the beginning of a year.
    fn sign_until(&self, name: &str, year: i32) -> (String, String) {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

fn write(dir: &Path, (cert, key): &(String, String), ca: Option<&str>) {
    fs::write(dir.join("cert.pem"), cert).expect("a file");
    fs::write(dir.join("key.pem"), key).expect("a file");
    if let Some(ca) = ca {
        fs::write(dir.join("ca.pem"), ca).expect("a file");
    }
}

/// Lets a node speak TLS, and know the others by their certificates.
fn secure(node: &Node, authority: &Authority) {
    write(&node.dir, &authority.sign(&format!("node {}", node.id)), Some(&authority.pem()));
    let file = node.dir.join("node.toml");
    let text = fs::read_to_string(&file).expect("a file").replace("http://", "https://");
    let tls = "\n[tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\nca = \"ca.pem\"\n";
    fs::write(&file, text + tls).expect("a file");
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

fn client(nodes: &[Node], authority: &Authority) -> Client {
    let urls = nodes.iter().map(|node| format!("https://{}", node.addr));
    let builder = Client::builder(urls).authority(authority.pem().as_bytes());
    builder.expect("an authority").build().expect("URLs")
}

/// What a connection shows, and what it answers to some bytes.
async fn ask(
    addr: SocketAddr,
    config: rustls::ClientConfig,
    request: &str,
) -> std::io::Result<(CertificateDer<'static>, String)> {
    let stream = TcpStream::connect(addr).await?;
    let name = ServerName::from(addr.ip());
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().expect("it shows one")[0].clone();
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).await?;
    Ok((shown, String::from_utf8_lossy(&answer).into_owned()))
}

fn trusting(authority: &Authority) -> rustls::ClientConfig {
    mmapd::tls::client_of(&[authority.0.der().clone()]).expect("an authority")
}

/// The same, showing a certificate of its own.
fn showing(trusted: &Authority, (cert, key): &(String, String)) -> rustls::ClientConfig {
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.0.der().clone()).expect("an authority");
    // Not as a node does it, which would not show a certificate that is good for nothing.
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("they are sound")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.expect("a certificate"), key)
        .expect("they fit")
}

#[test]
fn nodes_know_each_other_by_their_certificates() {
    let (authority, other) = (Authority::new("ours"), Authority::new("theirs"));
    let mut cluster = Cluster::new(3, "");
    for node in &mut cluster.nodes {
        secure(node, &authority);
        node.spawn();
    }
    let runtime = runtime();
    let client = client(&cluster.nodes, &authority);
    runtime.block_on(async {
        client.put("k", "v").await.expect("a leader is found");
        assert_eq!(client.get("k").await.expect("it answers").expect("it is there").value, "v");
        for node in &cluster.nodes {
            let one = alone(node, &authority);
            assert!(one.put("k", "w").await.is_ok(), "through each node");
        }
        // Who does not trust them, or speaks in the clear, gets nowhere.
        let stranger = Client::builder([format!("https://{}", cluster.nodes[0].addr)])
            .attempts(1)
            .build()
            .expect("a URL");
        assert!(matches!(stranger.get("k").await, Err(Error::Unreachable(_))));
        let plain = Client::builder([format!("http://{}", cluster.nodes[0].addr)]).attempts(1);
        assert!(plain.build().expect("a URL").get("k").await.is_err());
    });

    let addr = cluster.nodes[0].addr;
    let status = runtime.block_on(async { client.status().await }).expect("it answers");
    let vote = "POST /v1/raft/vote HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\0\0\0\0";
    runtime.block_on(async {
        // Without a certificate it is a client, and no node.
        let (_, answer) = ask(addr, trusting(&authority), vote).await.expect("an answer");
        assert_eq!(answer, "HTTP/1.1 401 Una");
        // With one of another authority it is nobody.
        let theirs = showing(&authority, &other.sign("node 2"));
        assert!(ask(addr, theirs, vote).await.is_err());
        // With one of ours that is over it is nobody, too.
        let over = showing(&authority, &authority.sign_until("node 2", 2020));
        assert!(ask(addr, over, vote).await.is_err());
        // With one of ours it is let in, and told that this is no message.
        let ours = showing(&authority, &authority.sign("node 4"));
        let (_, answer) = ask(addr, ours, vote).await.expect("an answer");
        assert_eq!(answer, "HTTP/1.1 400 Bad");
    });
    let after = runtime.block_on(async { client.status().await }).expect("it answers");
    assert_eq!(after.term, status.term);

    // The leader is killed, and the others go on; it comes back.
    let leader = runtime.block_on(async { client.leader().await }).expect("there is one").id;
    let place = usize::try_from(leader - 1).expect("few");
    cluster.nodes[place].kill();
    runtime.block_on(async { client.put("k", "x").await }).expect("a new leader");
    cluster.nodes[place].spawn();
    let back = alone(&cluster.nodes[place], &authority);
    wait("it follows", || {
        let status = runtime.block_on(async { back.status().await }).ok()?;
        (status.role == Role::Follower && status.leader.is_some()).then_some(())
    });
}

fn alone(node: &Node, authority: &Authority) -> Client {
    let url = format!("https://{}", node.addr);
    let builder = Client::builder([url]).authority(authority.pem().as_bytes());
    builder.expect("an authority").build().expect("a URL")
}

/// A node alone that speaks TLS and answers, with a client that trusts it.
fn serving() -> (Authority, Cluster, Runtime, Client) {
    let authority = Authority::new("ours");
    let mut cluster = Cluster::new(1, "");
    secure(&cluster.nodes[0], &authority);
    cluster.nodes[0].spawn();
    let (runtime, client) = (runtime(), alone(&cluster.nodes[0], &authority));
    wait("it serves", || runtime.block_on(async { client.put("k", "v").await }).ok());
    (authority, cluster, runtime, client)
}

#[test]
fn who_does_not_shake_hands_is_not_waited_for() {
    let (_, cluster, runtime, client) = serving();
    // Nothing, and the beginning of a handshake that says it is longer.
    for begun in [b"".as_slice(), b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = std::net::TcpStream::connect(cluster.nodes[0].addr).expect("it listens");
        stream.set_read_timeout(Some(process::PATIENCE)).expect("not zero");
        stream.write_all(begun).expect("it listens");
        let start = Instant::now();
        let end = stream.read(&mut [0; 64]);
        let closed = matches!(&end, Ok(0))
            || matches!(&end, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(closed, "{end:?}");
        assert!(start.elapsed() > Duration::from_secs(4), "closed after {:?}", start.elapsed());
    }
    runtime.block_on(async { client.put("k", "w").await }).expect("others are served");
}

#[test]
fn certificates_are_replaced_while_the_cluster_works() {
    let authority = Authority::new("ours");
    let mut cluster = Cluster::new(3, "");
    for node in &mut cluster.nodes {
        secure(node, &authority);
        node.spawn();
    }
    let runtime = runtime();
    let client = client(&cluster.nodes, &authority);
    runtime.block_on(async { client.put("k", "v").await }).expect("a leader is found");
    let get = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    let shown = |node: &Node| {
        let asked = ask(node.addr, trusting(&authority), get);
        runtime.block_on(asked).ok().map(|(shown, _)| shown)
    };
    for node in &cluster.nodes {
        let before = shown(node).expect("it shows one");
        write(&node.dir, &authority.sign("tomorrow"), None);
        node.signal(Signal::HUP);
        wait("the new one is shown", || (shown(node)? != before).then_some(()));
        // A key that does not fit changes nothing.
        let now = shown(node);
        fs::write(node.dir.join("key.pem"), authority.sign("x").1).expect("a file");
        node.signal(Signal::HUP);
        wait("it complains", || node.log_tail().contains("left alone").then_some(()));
        assert_eq!(shown(node), now);
        // Nor does one that the others would not take.
        let other = Authority::new("theirs");
        for (count, pair) in
            (2..).zip([other.sign("tomorrow"), authority.sign_until("tomorrow", 2020)])
        {
            write(&node.dir, &pair, None);
            node.signal(Signal::HUP);
            let refused = || node.log_tail().matches("left alone").count() == count;
            wait("it complains again", || refused().then_some(()));
            assert!(node.log_tail().contains("is not accepted"), "{}", node.log_tail());
            assert_eq!(shown(node), now);
        }
    }
    // Whether there is TLS is a matter of the start.
    let node = &cluster.nodes[0];
    let file = node.dir.join("node.toml");
    let text = fs::read_to_string(&file).expect("a file").replace("https://", "http://");
    let (without, _) = text.split_once("\n[tls]").expect("it is the last");
    fs::write(&file, without).expect("a file");
    node.signal(Signal::HUP);
    wait("it says why", || node.log_tail().contains("this process speaks TLS").then_some(()));
    runtime.block_on(async {
        for node in &cluster.nodes {
            alone(node, &authority).put("k", "w").await.expect("they still talk");
        }
    });
}

#[test]
fn files_that_do_not_fit_are_refused_at_the_start() {
    let authority = Authority::new("ours");
    let dir = tempfile::tempdir().expect("a directory");
    let (cert, key) = authority.sign("node 1");
    let check = |tls: &str| {
        fs::write(dir.path().join("node.toml"), tls).expect("a file");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_mmapd"))
            .args(["--config", "node.toml", "--check-config"])
            .current_dir(dir.path())
            .env_remove("PORT")
            .output()
            .expect("the binary starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    write(dir.path(), &(cert.clone(), key), Some(&authority.pem()));
    fs::write(dir.path().join("other.pem"), authority.sign("other").1).expect("a file");
    fs::write(dir.path().join("empty.pem"), "").expect("a file");
    let pair_in = |name: &str, (cert, key): (String, String)| {
        fs::write(dir.path().join(format!("{name}.pem")), cert).expect("a file");
        fs::write(dir.path().join(format!("{name}-key.pem")), key).expect("a file");
    };
    pair_in("theirs", Authority::new("theirs").sign("node 1"));
    pair_in("over", authority.sign_until("node 1", 2020));
    pair_in("lone", authority.sign("node 1"));
    let pair = "[tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n";
    let with = |name: &str, ca: &str| {
        format!("[tls]\ncert = \"{name}.pem\"\nkey = \"{name}-key.pem\"\n{ca}")
    };
    for (text, why) in [
        ("[tls]\ncert = \"cert.pem\"\n", "set both"),
        ("[tls]\nca = \"ca.pem\"\n", "set tls.cert"),
        ("[tls]\ncert = \"cert.pem\"\nkey = \"other.pem\"\n", "does not fit"),
        ("[tls]\ncert = \"none.pem\"\nkey = \"key.pem\"\n", "none.pem: cannot be read"),
        ("[tls]\ncert = \"empty.pem\"\nkey = \"key.pem\"\n", "holds no certificate"),
        (&with("theirs", "ca = \"ca.pem\"\n"), "is not accepted by ca.pem"),
        (&with("over", "ca = \"ca.pem\"\n"), "is not accepted by ca.pem"),
        (&with("over", ""), "is not accepted"),
        (&format!("{pair}[node]\nadvertise = \"http://127.0.0.1:3001\"\n"), "https://"),
        (
            &format!(
                "{pair}[[cluster.peers]]\nid = 1\nurl = \"https://127.0.0.1:3001\"\n\
                 [[cluster.peers]]\nid = 2\nurl = \"https://127.0.0.1:3002\"\n"
            ),
            "need tls.ca",
        ),
    ] {
        let (code, text_of) = check(text);
        assert_eq!(code, Some(78), "{text}: {text_of}");
        assert!(text_of.contains(why), "{text}: {text_of}");
    }
    assert_eq!(check(pair).0, Some(0));
    assert_eq!(check(&with("lone", "")).0, Some(0), "clients know its authority");
    assert_eq!(check(&format!("{pair}ca = \"ca.pem\"\n")).0, Some(0));
}

/// A connection over TLS, and the beginning of a request.
async fn begin(
    addr: SocketAddr,
    authority: &Authority,
    request: &str,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let stream = TcpStream::connect(addr).await.expect("it listens");
    let connector = TlsConnector::from(Arc::new(trusting(authority)));
    let mut stream = connector.connect(addr.ip().into(), stream).await.expect("a handshake");
    stream.write_all(request.as_bytes()).await.expect("it is read");
    stream
}

#[test]
fn who_takes_nothing_of_an_answer_loses_the_connection() {
    let authority = Authority::new("ours");
    let mut cluster = Cluster::new(1, "[limits]\nin_flight = 1\n[http]\nwrite_timeout = \"1s\"\n");
    secure(&cluster.nodes[0], &authority);
    cluster.nodes[0].spawn();
    let (runtime, addr) = (runtime(), cluster.nodes[0].addr);
    let builder = Client::builder([format!("https://{addr}")]).attempts(1);
    let client = builder.authority(authority.pem().as_bytes()).expect("an authority");
    let client = client.build().expect("a URL");
    let value = vec![b'x'; 8 << 20];
    wait("it serves", || runtime.block_on(async { client.put("k", value.clone()).await }).ok());
    let get = "GET /v1/keys/k HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut stalled = runtime.block_on(begin(addr, &authority, get));
    let mut begun = [0; 12];
    runtime.block_on(stalled.read_exact(&mut begun)).expect("an answer");
    assert_eq!(&begun, b"HTTP/1.1 200");
    let exists = || runtime.block_on(async { client.get("none").await });
    wait("the one place is taken", || exists().is_err().then_some(()));
    wait("it is free again", || exists().ok());
    let mut taken = Vec::new();
    let end = runtime.block_on(stalled.read_to_end(&mut taken));
    assert!(taken.len() < value.len(), "all {} bytes came: {end:?}", taken.len());
}

#[test]
fn who_waits_for_a_lock_and_leaves_gives_up_the_place() {
    let (authority, cluster, runtime, client) = serving();
    let addr = cluster.nodes[0].addr;
    let take = |wait: &str| {
        let body = format!("{{\"ttl\":\"1h\"{wait}}}");
        format!(
            "POST /v1/locks/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let queue = || {
        let info = runtime.block_on(async { client.lock_info("jobs").await });
        info.ok().flatten().map(|info| info.queue)
    };
    let _holder = runtime.block_on(begin(addr, &authority, &take("")));
    wait("it is held", || (queue() == Some(0)).then_some(()));
    let mut waiter = runtime.block_on(begin(addr, &authority, &take(",\"wait\":\"1m\"")));
    wait("it is waited for", || (queue() == Some(1)).then_some(()));
    runtime.block_on(waiter.shutdown()).expect("it is open");
    wait("nobody waits", || (queue() == Some(0)).then_some(()));
    // What else was sent meanwhile is not lost.
    let mut other = runtime.block_on(begin(addr, &authority, &take(",\"wait\":\"2s\"")));
    wait("it is waited for", || (queue() == Some(1)).then_some(()));
    let more = format!("GET /livez HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(200));
    let answers = runtime.block_on(async {
        other.write_all(more.as_bytes()).await.expect("it is open");
        let mut text = String::new();
        while text.matches("HTTP/1.1 ").count() < 2 {
            let mut bytes = [0; 4096];
            let count = other.read(&mut bytes).await.expect("it goes on");
            assert!(count > 0, "it ended: {text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        text
    });
    assert!(answers.contains("HTTP/1.1 409") && answers.contains("HTTP/1.1 200"), "{answers}");
}

#[test]
fn members_of_a_cluster_with_tls_have_it_too() {
    let (authority, cluster, runtime, _) = serving();
    let body = r#"{"id":2,"url":"http://127.0.0.1:3999"}"#;
    let request = format!(
        "POST /v1/cluster/members HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (_, answer) = runtime
        .block_on(ask(cluster.nodes[0].addr, trusting(&authority), &request))
        .expect("an answer");
    assert_eq!(answer, "HTTP/1.1 400 Bad");
}

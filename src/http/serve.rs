//! The accept loop: connections with limits and deadlines, and an orderly end.
//!
//! Our own, because the one that comes with axum has no deadlines, no limit on connections, and waits for ever for a client that stopped half way.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;

use super::access::Remote;
use super::pace::{Answer, InProgress, Paced, Progress};
use super::places::{Addresses, Members, Places};
use super::poll::Place;
use super::stream::Stream;
use super::{Edge, few, router};
use crate::config::Config;
use crate::metrics;
use crate::node::Handle;

/// Pause after the system refused to give us a connection (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections beyond `limits.connections`, for probes and for what nodes say to each other.
const SPARE: u32 = 16;
/// The same, for connections from where members are: those of clients cannot take these.
const RESERVED: u32 = 64;

/// Serves connections until `stopping` turns true, then lets the requests in flight finish.
/// The caller bounds how long that may take.
pub async fn serve(
    listener: TcpListener,
    handle: Handle,
    config: Config,
    mut stopping: watch::Receiver<bool>,
) {
    let mut http = hyper::server::conn::http1::Builder::new();
    // Heads are timed in `pace.rs`.
    http.header_read_timeout(None)
        .max_headers(usize::try_from(config.limits.headers).unwrap_or(100))
        .max_buf_size(buffer_size(&config))
        .half_close(true);
    let (times, tls) = (config.http.clone(), config.certificates.clone());
    let edge = Edge::new(handle.clone(), config);
    let entrance = Entrance::new(&edge);
    let looking = tokio::spawn(entrance.members.clone().keep_up(handle.clone()));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => break,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some((places, router)) = entrance.let_in(remote.ip()) else { continue };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let watcher = graceful.watcher();
        let (router, http, times, material) =
            (router.clone(), http.clone(), times.clone(), tls.now());
        tokio::spawn(async move {
            let stream = match Stream::accept(stream, material).await {
                Ok(stream) => stream,
                Err(error) => return tracing::debug!(%error, "no handshake"),
            };
            let remote = Remote { address: remote, is_node: stream.is_of_a_node() };
            let progress = Arc::new(Progress::default());
            let io = TokioIo::new(Paced::new(stream, progress.clone(), &times, places));
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(remote);
                answer(router.clone(), request, InProgress::begin(&progress))
            });
            let connection = watcher.watch(http.serve_connection(io, service));
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
    drop(listener);
    looking.abort();
    // The streams of peers never end by themselves. They bring what requests in flight wait
    // for, so they are ended when those are done.
    let quiet = async {
        edge.quiet().await;
        handle.end_streams();
    };
    tokio::join!(graceful.shutdown(), quiet);
}

/// Who is let in, and to what.
struct Entrance {
    connections: Arc<Semaphore>,
    spare: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
    addresses: Addresses,
    members: Members,
    all: Router,
    few: Router,
    refused: ::metrics::Counter,
}

impl Entrance {
    fn new(edge: &Edge) -> Self {
        let limits = &edge.config.limits;
        Self {
            connections: places(limits.connections),
            spare: places(SPARE),
            reserved: places(RESERVED),
            members: Members::default(),
            addresses: Addresses::new(limits.connections_per_address),
            all: router(edge.clone()),
            few: few(edge.clone()),
            refused: metrics::install().refused_connections.clone(),
        }
    }

    /// Places for one more from `address`, and what it may ask for; `None`: it is closed at once.
    fn let_in(&self, address: IpAddr) -> Option<(Places, &Router)> {
        let among = |places: &Arc<Semaphore>| places.clone().try_acquire_owned().ok();
        let is_member = self.members.are_at(address);
        // Over the limit the newest may still ask how the node is, on a few spare places, and
        // nodes may do what keeps the cluster alive: clients alone must not end that.
        let reserved = || is_member.then(|| among(&self.reserved)).flatten();
        let permit = among(&self.connections).map(|permit| (permit, &self.all));
        let permit = permit.or_else(|| {
            let spare = reserved().or_else(|| among(&self.spare));
            spare.map(|permit| (permit, &self.few))
        });
        let place = self.addresses.place(address, is_member);
        let Some(((permit, router), place)) = permit.zip(place) else {
            self.refused.increment(1);
            return None;
        };
        Some((Places::new(permit, place), router))
    }
}

fn places(number: u32) -> Arc<Semaphore> {
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(number.min(Semaphore::MAX_PERMITS)))
}

async fn answer(
    router: Router,
    mut request: Request<Incoming>,
    progress: InProgress,
) -> Result<Response<Answer>, Infallible> {
    let has_body = !request.body().is_end_stream();
    request.extensions_mut().insert(progress.caller());
    let mut response = router.oneshot(request).await?;
    let status = response.status();
    let place = response.extensions_mut().remove::<Place>();
    if let Some(patience) = response.extensions_mut().remove() {
        progress.must_be_taken(patience);
    }
    if has_body && (status.is_client_error() || status.is_server_error()) {
        progress.leaves_body();
    }
    Ok(response.map(|body| Answer::new(body, progress, place)))
}

/// hyper wants at least 8 KiB.
fn buffer_size(config: &Config) -> usize {
    usize::try_from(config.limits.header_bytes).unwrap_or(usize::MAX).clamp(8 << 10, 1 << 20)
}

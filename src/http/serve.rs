//! The accept loop: connections with limits and deadlines, and an orderly end.
//!
//! Our own, because the one that comes with axum has no timer behind hyper's header
//! deadline, no limit on connections, and waits for ever for a client that stopped half way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{Edge, routes};
use crate::config::Config;
use crate::node::Handle;

/// Pause after the system refused to give us a connection (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves connections until `stopping` turns true, then lets the requests in flight finish.
/// The caller bounds how long that may take.
pub async fn serve(
    listener: TcpListener,
    handle: Handle,
    config: Config,
    mut stopping: watch::Receiver<bool>,
) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.http.header_timeout.max(config.http.idle_timeout))
        .max_headers(usize::try_from(config.limits.headers).unwrap_or(100))
        .max_buf_size(buffer_size(&config))
        .half_close(true);
    let header_timeout = config.http.header_timeout;
    let connections = usize::try_from(config.limits.connections).unwrap_or(usize::MAX);
    let connections = Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
    let edge = Edge::new(handle.clone(), config);
    let router = routes(edge.clone());
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Over the limit the newest is closed at once.
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let service = TowerToHyperService::new(router.clone());
        let io = TokioIo::new(FirstByte::new(stream, header_timeout, permit));
        let connection = graceful.watch(http.serve_connection(io, service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
    drop(listener);
    // The streams of peers never end by themselves. They bring what requests in flight wait
    // for, so they are ended when those are done.
    let quiet = async {
        edge.quiet().await;
        handle.end_streams();
    };
    tokio::join!(graceful.shutdown(), quiet);
}

/// hyper wants at least 8 KiB.
fn buffer_size(config: &Config) -> usize {
    usize::try_from(config.limits.header_bytes).unwrap_or(usize::MAX).clamp(8 << 10, 1 << 20)
}

/// A connection that must say something soon after it was made. It holds its place among
/// the connections until it is closed.
struct FirstByte {
    stream: TcpStream,
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl FirstByte {
    fn new(stream: TcpStream, within: Duration, permit: OwnedSemaphorePermit) -> Self {
        let deadline = Some(Box::pin(tokio::time::sleep(within)));
        Self { stream, deadline, _permit: permit }
    }
}

impl tokio::io::AsyncRead for FirstByte {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            self.deadline = None;
        }
        if read.is_pending()
            && let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl tokio::io::AsyncWrite for FirstByte {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

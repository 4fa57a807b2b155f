//! One connection, in the clear or over TLS.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::tls::Material;

/// A handshake takes no longer, or there is none.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most that is read ahead to find the end of a connection.
const PEEKED: usize = 64;

/// The connection of the system, which counts what the other side takes: over TLS a write may be
/// done while nothing of it has left.
pub(super) struct Wire {
    stream: TcpStream,
    written: u64,
}

/// A connection that was accepted.
pub(super) enum Stream {
    /// In the clear.
    Plain(Wire),
    /// Over TLS.
    Tls(Box<Tls>),
}

/// With what was read to find out whether more comes.
pub(super) struct Tls {
    stream: TlsStream<Wire>,
    peeked: [u8; PEEKED],
    /// So much of it was not handed out yet.
    rest: std::ops::Range<usize>,
}

impl Stream {
    /// Shakes hands, if there is TLS.
    ///
    /// # Errors
    /// `TimedOut`; what the handshake found.
    pub(super) async fn accept(
        stream: TcpStream,
        material: Option<Arc<Material>>,
    ) -> io::Result<Self> {
        let wire = Wire { stream, written: 0 };
        let Some(material) = material else { return Ok(Self::Plain(wire)) };
        let handshake = TlsAcceptor::from(material.server()).accept(wire);
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
        let stream = stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Self::Tls(Box::new(Tls { stream, peeked: [0; PEEKED], rest: 0..0 })))
    }

    /// Did the other side show a certificate? Then it is one of a node: others are refused.
    pub(super) fn is_of_a_node(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.stream.get_ref().1.peer_certificates().is_some(),
        }
    }

    /// Bytes that the system took from us.
    pub(super) fn written(&self) -> u64 {
        match self {
            Self::Plain(wire) => wire.written,
            Self::Tls(tls) => tls.stream.get_ref().0.written,
        }
    }

    /// Has something arrived that was not read? `Ok(0)`: the end.
    pub(super) fn poll_peek(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(wire) => wire.stream.poll_peek(context, &mut ReadBuf::new(&mut [0])),
            Self::Tls(tls) => tls.poll_peek(context),
        }
    }
}

impl Tls {
    /// Bytes of TLS may be anything, its own end too, so they have to be read to be known.
    fn poll_peek(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.rest.is_empty() {
            let mut into = ReadBuf::new(&mut self.peeked);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut into))?;
            self.rest = 0..into.filled().len();
        }
        Poll::Ready(Ok(self.rest.len()))
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, into);
        }
        let count = self.rest.len().min(into.remaining());
        into.put_slice(&self.peeked[self.rest.start..self.rest.start + count]);
        self.rest.start += count;
        Poll::Ready(Ok(()))
    }
}

impl Wire {
    fn count(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &written {
            self.written += *count as u64;
        }
        written
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.count(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_read(context, into),
            Self::Tls(tls) => tls.poll_read(context, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_write(context, bytes),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_flush(context),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_shutdown(context),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_write_vectored(context, parts),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(wire) => wire.is_write_vectored(),
            Self::Tls(tls) => tls.stream.is_write_vectored(),
        }
    }
}

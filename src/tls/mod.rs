//! Certificates: what a server shows, what it demands, and what a node shows to another.
//!
//! One port serves everybody. Clients see the certificate of the node, and need none. Other
//! nodes show theirs, signed by the cluster's own authority: whoever has one of those is a
//! node. Keys and certificates are read as a whole and replaced as a whole; connections that
//! are under way keep what they began with.
//!
//! Left out: cryptography, which is rustls with ring, and files, which the caller names.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};

/// What is spoken over TLS.
const ALPN: &[u8] = b"http/1.1";

/// Why certificates cannot be used: one message for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct TlsError {
    /// The file.
    pub path: String,
    /// What is wrong with it, and what to do.
    pub why: String,
}

fn wrong(path: &Path, why: impl Into<String>) -> TlsError {
    TlsError { path: path.display().to_string(), why: why.into() }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Where the files are, all PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority that signs the certificates of nodes, and of nobody else.
    pub ca: Option<PathBuf>,
}

/// What was read from the files, ready for use.
#[derive(Clone, Debug)]
pub struct Material {
    server: Arc<ServerConfig>,
    client: ClientConfig,
    knows_nodes: bool,
}

impl Material {
    /// Reads the files and sees whether they fit together.
    ///
    /// # Errors
    /// A file that cannot be read or is none of these, a key that is another's, a certificate
    /// that the authority did not sign, or that is over or not valid yet.
    pub fn read(files: &Files) -> Result<Self, TlsError> {
        let chain = certificates(&files.cert)?;
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|error| wrong(&files.key, format!("holds no private key: {error}")))?;
        let mut roots = RootCertStore::empty();
        let trusted = match &files.ca {
            Some(ca) => certificates(ca)?,
            // Alone, a node trusts whom it shows itself: others see the same chain.
            None => chain.last().cloned().into_iter().collect(),
        };
        let from = files.ca.as_deref().unwrap_or(&files.cert);
        for certificate in trusted {
            roots
                .add(certificate)
                .map_err(|error| wrong(from, format!("holds no authority: {error}")))?;
        }
        let roots = Arc::new(roots);
        check_chain(files, &chain, &roots)?;
        let versions = "the versions of TLS that rustls has by default are sound";
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect(versions);
        let server = match &files.ca {
            Some(ca) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
                        .allow_unauthenticated()
                        .build()
                        .map_err(|error| wrong(ca, error.to_string()))?;
                server.with_client_cert_verifier(verifier)
            }
            None => server.with_no_client_auth(),
        };
        let unfit = |error: rustls::Error| {
            wrong(&files.cert, format!("does not fit to the key {}: {error}", files.key.display()))
        };
        let mut server = server.with_single_cert(chain.clone(), key.clone_key()).map_err(unfit)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect(versions)
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(unfit)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { server: Arc::new(server), client, knows_nodes: files.ca.is_some() })
    }

    /// For who accepts connections.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For a node that connects to another.
    #[must_use]
    pub fn client(&self) -> ClientConfig {
        self.client.clone()
    }

    /// Do certificates tell who is a node?
    #[must_use]
    pub fn knows_nodes(&self) -> bool {
        self.knows_nodes
    }
}

/// Would those who trust `roots` take this chain, here and now, from a server and from a node
/// that connects? Found out by them it would cost a cluster its node.
fn check_chain(
    files: &Files,
    chain: &[CertificateDer<'static>],
    roots: &Arc<RootCertStore>,
) -> Result<(), TlsError> {
    let (cert, between) = chain.split_first().ok_or_else(|| wrong(&files.cert, "is empty"))?;
    let refused = |error: rustls::Error| {
        let by = files.ca.as_deref().map(|ca| format!(" by {}", ca.display()));
        wrong(&files.cert, format!("is not accepted{}: {error}", by.unwrap_or_default()))
    };
    let now = UnixTime::now();
    let algorithms = provider().signature_verification_algorithms.all;
    let parsed = ParsedCertificate::try_from(cert).map_err(refused)?;
    let served =
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, between, now, algorithms);
    let Some(ca) = &files.ca else {
        // Whom clients trust is theirs to say, but no client takes what is over.
        return match served {
            Err(error) if is_about_dates(&error) => Err(refused(error)),
            Ok(()) | Err(_) => Ok(()),
        };
    };
    served.map_err(refused)?;
    let nodes = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
        .build()
        .map_err(|error| wrong(ca, error.to_string()))?;
    nodes.verify_client_cert(cert, between, now).map(drop).map_err(refused)
}

fn is_about_dates(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
        )
    )
}

/// For who speaks no TLS, or trusts these authorities only.
///
/// # Errors
/// One of them is none.
pub fn client_of(authorities: &[CertificateDer<'static>]) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone())?;
    }
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![ALPN.to_vec()];
    Ok(client)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(path, format!("cannot be read as certificates: {error}")))?;
    if all.is_empty() { Err(wrong(path, "holds no certificate")) } else { Ok(all) }
}

/// The certificates in use, shared by all who need them, and replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    material: Arc<RwLock<Option<Arc<Material>>>>,
}

/// As for [`crate::auth::Access`]: settings with the same paths are the same.
impl PartialEq for Tls {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Tls {
    /// With these.
    #[must_use]
    pub fn new(material: Material) -> Self {
        Self { material: Arc::new(RwLock::new(Some(Arc::new(material)))) }
    }

    /// As of now; `None`: there is no TLS.
    #[must_use]
    pub fn now(&self) -> Option<Arc<Material>> {
        self.material.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows and trusts from now on what `other` does. Whether there is TLS at all does not
    /// change while the process runs: the URLs of nodes say so.
    pub fn follow(&self, other: &Self) {
        let next = other.now();
        let mut mine = self.material.write().unwrap_or_else(PoisonError::into_inner);
        if mine.is_some() == next.is_some() {
            *mine = next;
        }
    }
}

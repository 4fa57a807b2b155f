//! Running a node: bind, start, serve, and an orderly end.
//!
//! The port is bound first, so that a second daemon on the same port fails before it
//! touches any data. READY is told when the log is recovered and requests are answered.
//!
//! The end, on SIGTERM or SIGINT: `/readyz` fails, leadership moves on, no connection is
//! accepted any more, requests in flight finish - all of it within `http.drain_timeout` -
//! and files are synced. A second signal ends the process at once; that is safe, like any
//! crash. SIGHUP reads the settings again and takes over `log.level`, tokens, peer
//! secrets and certificates, and drops a log filter that an operator had set; unless they would
//! turn TLS on or off, or leave an address that others reach unguarded.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::audit::Audit;
use super::exit::{Exit, Fatal};
use super::notify::notify;
use super::private;
use crate::config::{Config, Sources, load};
use crate::metrics;
use crate::node::Node;
use crate::node::join::{JoinRequest, Joined, draw_incarnation, must_join};

/// Runs a node until it is told to stop.
pub(super) fn serve(config: Config, sources: &Sources) -> Result<(), Fatal> {
    let audit = super::logs::init(&config)?;
    let workers = match config.http.workers {
        0 => std::thread::available_parallelism().map_or(2, usize::from),
        workers => workers,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .map_err(|error| Fatal::failure(format!("threads cannot be started: {error}")))?;
    let outcome = runtime.block_on(run(config, sources, audit.as_ref()));
    // Whatever still runs has had its time.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

async fn run(mut config: Config, sources: &Sources, audit: Option<&Audit>) -> Result<(), Fatal> {
    let mut signals = Signals::new()?;
    let listener = bind(&mut config).await?;
    let numbers = metrics::install();
    private::warn_of_readable(&config);
    private::close_folders(&config);
    // Its certificates and tokens are those that everybody uses.
    let shared = config.clone();
    tokio::spawn(keep_up());
    if must_join(&config)? {
        tokio::select! {
            joined = join(&config) => joined?,
            () = signals.stop(sources, audit, &shared) => return Ok(()),
        }
    }
    let mut node = Node::start(&config, numbers)?;
    let handle = node.handle();
    let (stop, stopping) = watch::channel(false);
    let edge = tokio::spawn(crate::http::serve(listener, handle.clone(), config.clone(), stopping));
    tracing::info!(
        node = config.node.id,
        listen = %config.node.listen,
        advertise = config.node.advertise,
        members = config.members().len(),
        version = metrics::VERSION,
        "serving"
    );
    notify("READY=1");
    tokio::select! {
        () = signals.stop(sources, audit, &shared) => {}
        fatal = node.failed() => return Err(fatal.into()),
    }
    tracing::info!(timeout = ?config.http.drain_timeout, "draining");
    notify("STOPPING=1");
    let orderly = async {
        let drained = tokio::time::timeout(config.http.drain_timeout, async {
            handle.drain().await;
            // Nobody listens any more when the edge has ended by itself.
            let _ = stop.send(true);
            let _ = edge.await;
        });
        if drained.await.is_err() {
            tracing::warn!("requests were still in flight at the deadline");
        }
        node.stop().await
    };
    tokio::select! {
        stopped = orderly => stopped?,
        () = signals.stop(sources, audit, &shared) => {
            return Err(Fatal::failure("stopped at once by a second signal"));
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Asks the cluster to take this node in, and notes the answer.
async fn join(config: &Config) -> Result<(), Fatal> {
    let incarnation = draw_incarnation();
    let role = if config.cluster.learner { "learner" } else { "voter" };
    let request = JoinRequest {
        id: config.node.id,
        url: config.node.advertise.clone(),
        role,
        incarnation: format!("{incarnation:016x}"),
    };
    let urls = config.cluster.join_urls();
    tracing::info!(node = config.node.id, ?urls, role, "asking to join");
    let told = crate::node::join::ask(&urls, &request, config).await;
    let (cluster, membership) = told.map_err(|error| Fatal {
        exit: Exit::Config,
        message: format!("cannot join the cluster: {error}"),
    })?;
    Joined { cluster, incarnation, membership }.save(config)?;
    Ok(())
}

async fn bind(config: &mut Config) -> Result<TcpListener, Fatal> {
    let address = config.node.listen;
    let problem = |error: std::io::Error| {
        Fatal::failure(format!(
            "cannot listen on {address}: {error}; stop the process that uses the port, or \
             choose another with --port or node.listen"
        ))
    };
    let listener = TcpListener::bind(address).await.map_err(problem)?;
    config.bound_to(listener.local_addr().map_err(problem)?);
    Ok(listener)
}

async fn keep_up() {
    let mut ticks = tokio::time::interval(metrics::UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        metrics::upkeep();
    }
}

/// `SIGXFSZ`: a write beyond the limit on file sizes.
const FILE_SIZE_SIGNAL: i32 = 25;

struct Signals {
    /// Caught and not looked at: the write itself reports the error, which is fatal in the
    /// documented way.
    _file_size: Signal,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self, Fatal> {
        let listen =
            |kind| signal(kind).map_err(|error| Fatal::failure(format!("no signals: {error}")));
        Ok(Self {
            _file_size: listen(SignalKind::from_raw(FILE_SIZE_SIGNAL))?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the signal to stop.
    async fn stop(&mut self, sources: &Sources, audit: Option<&Audit>, config: &Config) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => reload(sources, audit, config),
            }
        }
    }
}

/// Takes over what may change while the process runs. Everything or, when something is wrong,
/// nothing.
fn reload(sources: &Sources, audit: Option<&Audit>, config: &Config) {
    let reloads = &metrics::install().config_reloads;
    let loaded = load(sources);
    match loaded.and_then(|loaded| loaded.may_replace(config).map(|()| loaded)) {
        Ok(loaded) => {
            let level = loaded.config.log.level;
            config.logs.configure(level.filter());
            if let Some(audit) = audit {
                audit.reopen();
            }
            config.access.follow(&loaded.config.access);
            config.certificates.follow(&loaded.config.certificates);
            private::warn_of_readable(&loaded.config);
            reloads.done.increment(1);
            tracing::info!(
                level = level.as_str(),
                tokens = config.access.now().len(),
                "settings read again; log level, tokens, peer secrets and certificates are taken over"
            );
        }
        Err(error) => {
            reloads.failed.increment(1);
            tracing::error!("settings read again and left alone: {error}");
        }
    }
}

//! Writing logs: the only subscriber of the process, with a filter that changes while it runs.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Filter as LayerFilter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, reload};

use super::audit::Audit;
use super::exit::Fatal;
use crate::config::{Config, Format};
use crate::http::AUDIT;
use crate::logs::Filter;

/// Begins to write logs, and the audit log if there is one.
pub(super) fn init(config: &Config) -> Result<Option<Audit>, Fatal> {
    let audit = &config.log.audit;
    let audit = (!audit.as_os_str().is_empty()).then(|| Audit::open(audit)).transpose()?;
    let (filter, switch) = reload::Layer::new(lines(&config.logs.now().filter));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let colours = std::io::stderr().is_terminal();
    let lines = match config.log.format {
        Format::Text => lines.with_ansi(colours).boxed(),
        Format::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    let registry = tracing_subscriber::registry().with(lines.with_filter(filter));
    // It fails only when the process has a subscriber already, which then stays.
    let _ = match audit.clone() {
        Some(audit) => {
            let told = tracing_subscriber::fmt::layer().json().flatten_event(true);
            let told = told.with_current_span(false).with_span_list(false);
            let told = told.with_writer(audit).with_target(false);
            let only = Targets::new().with_target(AUDIT, LevelFilter::INFO);
            registry.with(told.with_filter(Asked(only))).try_init()
        }
        // No layer, rather than one that is not there: with that nobody would know of a line
        // that it is never written.
        None => registry.try_init(),
    };
    // It fails only when the subscriber is gone, and nobody reads what it would write.
    config.logs.drives(move |filter| drop(switch.reload(self::lines(filter))));
    Ok(audit)
}

/// What the audit log is told of is for it alone.
fn lines(filter: &Filter) -> Asked {
    let targets = Targets::new().with_default(filter.rest()).with_targets(filter.targets());
    Asked(targets.with_target(AUDIT, LevelFilter::OFF))
}

/// Targets that are asked about each line, but for those that are never written.
///
/// Layers note per thread what their filters said last, and look there when a line comes. Had
/// one been asked without a line, as `enabled!` and the bridge from the `log` crate do, the
/// next line that is always written would find that note, and be lost.
struct Asked(Targets);

impl<S: Subscriber> LayerFilter<S> for Asked {
    fn enabled(&self, of: &Metadata<'_>, context: &Context<'_, S>) -> bool {
        LayerFilter::enabled(&self.0, of, context)
    }

    fn callsite_enabled(&self, of: &'static Metadata<'static>) -> Interest {
        let interest = LayerFilter::<S>::callsite_enabled(&self.0, of);
        if interest.is_never() { interest } else { Interest::sometimes() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        LayerFilter::<S>::max_level_hint(&self.0)
    }
}

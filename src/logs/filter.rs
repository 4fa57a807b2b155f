//! Which lines are written: a level for all, and others for some targets.
//!
//! Read strictly. A level with a mistake in it looks like a target, and would silence all the
//! rest; so what stands alone must be a level.

use std::fmt;

use tracing::level_filters::LevelFilter;

/// Longest text of a filter.
const TEXT_MAX: usize = 1024;

const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];

/// Which lines are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    rest: LevelFilter,
    targets: Vec<(String, LevelFilter)>,
}

/// What is wrong with the text of a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FilterError(String);

impl Filter {
    /// The same level for all.
    #[must_use]
    pub fn all(level: LevelFilter) -> Self {
        Self { rest: level, targets: Vec::new() }
    }

    /// Reads `debug` or `info,mmapd::raft=trace`. A target means all whose names begin so; of
    /// several the longest counts. Without a level that stands alone, what is not named has
    /// that of `base`.
    ///
    /// # Errors
    /// What is wrong, for the operator.
    pub fn parse(text: &str, base: &Self) -> Result<Self, FilterError> {
        if text.len() > TEXT_MAX {
            return Err(FilterError(format!("a filter has at most {TEXT_MAX} bytes")));
        }
        let mut rest = None;
        let mut targets: Vec<(String, LevelFilter)> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let Some((target, level)) = part.split_once('=') else {
                if rest.replace(level(part)?).is_some() {
                    return Err(FilterError(format!("{part:?} is a second level for all")));
                }
                continue;
            };
            let (target, level) = (target.trim_end(), self::level(level.trim_start())?);
            check_target(target)?;
            if targets.iter().any(|(other, _)| other == target) {
                return Err(FilterError(format!("the target {target:?} is given twice")));
            }
            targets.push((target.to_owned(), level));
        }
        Ok(Self { rest: rest.unwrap_or(base.rest), targets })
    }

    /// The level of what is not named.
    #[must_use]
    pub fn rest(&self) -> LevelFilter {
        self.rest
    }

    /// The targets with levels of their own.
    pub fn targets(&self) -> impl Iterator<Item = (&str, LevelFilter)> {
        self.targets.iter().map(|(target, level)| (target.as_str(), *level))
    }
}

/// As [`Filter::parse`] reads it.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(self.rest))?;
        self.targets().try_for_each(|(target, level)| write!(f, ",{target}={}", name(level)))
    }
}

fn level(text: &str) -> Result<LevelFilter, FilterError> {
    let found = LEVELS.iter().find(|(name, _)| *name == text);
    found.map(|(_, level)| *level).ok_or_else(|| {
        FilterError(format!("{text:?} is not a level: off, error, warn, info, debug or trace"))
    })
}

fn name(level: LevelFilter) -> &'static str {
    LEVELS.iter().find(|(_, other)| *other == level).map_or("off", |(name, _)| name)
}

fn check_target(target: &str) -> Result<(), FilterError> {
    let is_path = |byte: u8| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte);
    if target.is_empty() || !target.bytes().all(is_path) {
        return Err(FilterError(format!("{target:?} is not a target such as mmapd::raft")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_written() {
        let base = Filter::all(LevelFilter::WARN);
        for (text, want) in [
            ("debug", "debug"),
            ("off", "off"),
            ("mmapd=debug", "warn,mmapd=debug"),
            ("mmapd=debug,mmapd::raft=trace", "warn,mmapd=debug,mmapd::raft=trace"),
            (" mmapd::raft = trace , info", "info,mmapd::raft=trace"),
        ] {
            let filter = Filter::parse(text, &base).expect(text);
            assert_eq!(filter.to_string(), want);
            assert_eq!(Filter::parse(want, &Filter::all(LevelFilter::OFF)), Ok(filter));
        }
    }

    #[test]
    fn mistakes_are_named() {
        let base = Filter::all(LevelFilter::INFO);
        for (text, why) in [
            ("", "\"\" is not a level"),
            ("debgu", "\"debgu\" is not a level"),
            ("DEBUG", "not a level"),
            ("info,", "\"\" is not a level"),
            ("info,debug", "second level"),
            ("mmapd", "not a level"),
            ("mmapd=loud", "\"loud\" is not a level"),
            ("mmapd=debug=info", "not a level"),
            ("=debug", "not a target"),
            ("mm apd=debug", "not a target"),
            ("mmapd[{key=a}]=debug", "\"{key=a}]=debug\" is not a level"),
            ("a=info,a=debug", "given twice"),
            (&"a".repeat(TEXT_MAX + 1), "at most 1024 bytes"),
        ] {
            let error = Filter::parse(text, &base).expect_err(text).to_string();
            let why = if text.contains('[') { "is not a level" } else { why };
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

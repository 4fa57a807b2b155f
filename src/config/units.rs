//! Durations and sizes as people write them: `"150ms"`, `"64MiB"`. Exact in both directions;
//! a number without its unit is refused, because nobody can tell what it was meant to be.

use std::fmt;
use std::time::Duration;

use serde::{Deserializer, Serializer, de};

const DURATIONS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const SIZES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads `"150ms"`, `"30s"`, `"5m"`, `"2h"` or `"1d"`; `None`: it is none of these.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, &DURATIONS).map(Duration::from_millis)
}

/// Reads `"512B"`, `"16KiB"`, `"64MiB"`, `"2GiB"` or `"1TiB"`; `None`: it is none of these.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    parse(text, &SIZES)
}

/// The largest unit that says it exactly; parts of a millisecond are dropped.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    show(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &DURATIONS, "ms")
}

/// The largest unit that says it exactly.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    show(bytes, &SIZES, "B")
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn show(number: u64, units: &[(&str, u64)], smallest: &str) -> String {
    let fits = |factor: u64| number >= factor && number.is_multiple_of(factor);
    let (name, factor) =
        units.iter().copied().find(|(_, factor)| fits(*factor)).unwrap_or((smallest, 1));
    format!("{}{name}", number / factor)
}

/// `#[serde(with = "units::duration")]` for a [`Duration`].
pub(super) mod duration {
    use super::{Deserializer, Duration, Serializer, Text, parse_duration, show_duration};

    pub(in super::super) fn serialize<S: Serializer>(
        duration: &Duration,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        out.serialize_str(&show_duration(*duration))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        input: D,
    ) -> Result<Duration, D::Error> {
        input.deserialize_str(Text {
            read: parse_duration,
            wanted: "a duration with its unit, such as \"150ms\", \"30s\" or \"5m\"",
        })
    }
}

/// `#[serde(with = "units::size")]` for a number of bytes.
pub(super) mod size {
    use super::{Deserializer, Serializer, Text, parse_size, show_size};

    pub(in super::super) fn serialize<S: Serializer>(
        bytes: &u64,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        out.serialize_str(&show_size(*bytes))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        input: D,
    ) -> Result<u64, D::Error> {
        input.deserialize_str(Text {
            read: parse_size,
            wanted: "a size with its unit, such as \"512B\", \"64MiB\" or \"2GiB\"",
        })
    }
}

struct Text<T> {
    read: fn(&str) -> Option<T>,
    wanted: &'static str,
}

impl<T> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wanted)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_exact_both_ways() {
        for (text, millis) in
            [("0ms", 0), ("150ms", 150), ("30s", 30_000), ("90s", 90_000), ("5m", 300_000)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
            assert_eq!(show_duration(Duration::from_millis(millis)), text);
        }
        for (text, bytes) in [("0B", 0), ("512B", 512), ("64MiB", 64 << 20), ("3GiB", 3 << 30)] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
            assert_eq!(show_size(bytes), text);
        }
    }

    #[test]
    fn what_has_no_unit_or_no_number_or_no_room_is_refused() {
        for text in ["", "5", "ms", "-5s", "1.5s", "5 sec", "5S", "99999999999999999999s"] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
        for text in ["", "5", "MiB", "5MB", "5mib", "18446744073709551615KiB"] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }
}

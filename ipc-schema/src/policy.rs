//! Policy: what the operator decides, as one whole value. Parsing is validating.
//!
//! A policy travels whole, with its revision, to every worker; it is never edited in place. [`KEYS`] is the only list
//! of keys: the command line, the configuration file, the help text and the codec all read it.

use std::fmt;

use serde::Serialize;

use crate::ids::{Revision, quoted};

/// When a chunk is sent as FEC-protected symbols instead of by a QUIC stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FecMode {
    /// When the path shows at least `fec.min_loss_pct` loss.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always, with at least one parity symbol for each block.
    Always,
}

/// How fast workers send to peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CongestionLaw {
    /// By a model of the path, in which random loss is no congestion.
    #[default]
    Auto,
    /// CUBIC (RFC 9438): every loss is congestion.
    Cubic,
    /// At this rate whatever the path shows: for links that the operator owns.
    Rate {
        /// Bits a second, from [`RATE_MIN`] to [`RATE_MAX`].
        bits_per_s: u64,
    },
}

/// Lowest rate that a policy takes, in bits a second.
pub const RATE_MIN: u64 = 100_000;
/// Highest rate that a policy takes, in bits a second.
pub const RATE_MAX: u64 = 1_000_000_000_000;

/// Where workers are pinned.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pinning {
    /// Worker i on the i-th CPU that the process may use, round robin.
    #[default]
    Auto,
    /// Not pinned.
    Off,
    /// Worker i on the i-th CPU of this list, round robin; at most [`CPUS_MAX`].
    Cpus(Vec<u16>),
}

/// CPUs in a pinning list at most.
pub const CPUS_MAX: usize = 256;

/// One whole policy. Every value in it is within its bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// `fec.mode`.
    pub fec_mode: FecMode,
    /// `fec.max_overhead_pct`: parity symbols for each 100 data symbols at most.
    pub fec_max_overhead_pct: u8,
    /// `fec.min_loss_pct`, in hundredths of a percent: below this measured loss `auto` uses streams.
    pub fec_min_loss_bp: u16,
    /// `congestion`.
    pub congestion: CongestionLaw,
    /// `store.quota`: bytes that contents may take on disk; `u64::MAX` = unlimited.
    pub store_quota_bytes: u64,
    /// `transfer.inflight_chunks`: chunks that one worker has asked of one source and not yet got.
    pub transfer_inflight_chunks: u16,
    /// `transfer.jobs`: fetches under way at once on this node.
    pub transfer_jobs_max: u16,
    /// `session.grace_s`: how long workers of a peer stay admitted after its session was lost and nothing went on with them.
    pub session_grace_s: u32,
    /// `discovery.hearsay`: whether holders that known peers tell of are asked too.
    pub discovery_hearsay: bool,
    /// `workers.cpus`.
    pub workers_cpus: Pinning,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            fec_mode: FecMode::Auto,
            fec_max_overhead_pct: 25,
            fec_min_loss_bp: 20,
            congestion: CongestionLaw::Auto,
            store_quota_bytes: u64::MAX,
            transfer_inflight_chunks: 96,
            transfer_jobs_max: 16,
            session_grace_s: 60,
            discovery_hearsay: true,
            workers_cpus: Pinning::Auto,
        }
    }
}

/// A policy with the revision under which it was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Revised {
    /// Grows by one with each change.
    pub revision: Revision,
    /// The whole value.
    pub policy: Policy,
}

/// Why a policy change is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No such key.
    #[error("unknown policy key {key:?}{}", hint(suggestion.as_deref()))]
    UnknownKey {
        /// The key, shortened.
        key: String,
        /// The nearest known key.
        suggestion: Option<String>,
    },
    /// The value does not fit the key.
    #[error("policy {key} cannot be {value:?}; it takes {takes}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// The value, shortened.
        value: String,
        /// What it takes, in words.
        takes: &'static str,
    },
    /// There is no `=`.
    #[error("policy change {text:?} is not KEY=VALUE")]
    NoAssignment {
        /// The text, shortened.
        text: String,
    },
}

/// `; did you mean "…"?` or nothing.
#[must_use]
pub fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default()
}

fn hint(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(|| "; pangeactl policy show lists them".to_owned(), |near| did_you_mean(Some(near)))
}

/// The candidate most like `text`, when one is alike at all.
#[must_use]
pub fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    /// Below this Jaro-Winkler similarity a suggestion confuses more than it helps; the value clap uses.
    const ALIKE: f64 = 0.7;
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(text, candidate), candidate))
        .filter(|(score, _)| *score > ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_owned())
}

/// One key of a policy: its name, what it takes, what it means, and how it is read and printed.
pub struct Key {
    /// As written on the command line and in the configuration file.
    pub name: &'static str,
    /// What values it takes, in words.
    pub takes: &'static str,
    /// What it does and what it costs to raise.
    pub help: &'static str,
    set: fn(&mut Policy, &str) -> Option<()>,
    print: fn(&Policy) -> String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Every policy key, in the order in which `pangeactl policy show` prints them.
pub static KEYS: [Key; 10] = [
    Key {
        name: "fec.mode",
        takes: "auto, off or always",
        help: "When chunks travel as FEC-protected datagrams instead of QUIC streams.",
        set: |policy, text| {
            policy.fec_mode = match text {
                "auto" => FecMode::Auto,
                "off" => FecMode::Off,
                "always" => FecMode::Always,
                _ => return None,
            };
            Some(())
        },
        print: |policy| {
            match policy.fec_mode {
                FecMode::Auto => "auto",
                FecMode::Off => "off",
                FecMode::Always => "always",
            }
            .to_owned()
        },
    },
    Key {
        name: "fec.max_overhead_pct",
        takes: "a whole number from 0 to 100",
        help: "Parity symbols for each 100 data symbols at most; raising it costs bandwidth on lossy paths.",
        set: |policy, text| within(text, 0, 100).map(|value| policy.fec_max_overhead_pct = value),
        print: |policy| policy.fec_max_overhead_pct.to_string(),
    },
    Key {
        name: "fec.min_loss_pct",
        takes: "a percentage from 0 to 100 with at most two decimals",
        help: "Measured loss below which fec.mode=auto uses streams.",
        set: |policy, text| parse_basis_points(text).map(|value| policy.fec_min_loss_bp = value),
        print: |policy| print_basis_points(policy.fec_min_loss_bp),
    },
    Key {
        name: "congestion",
        takes: "auto, cubic, or rate: and whole bits a second such as rate:500M or rate:1500k (100k to 1000G)",
        help: "How fast workers send: by a model of the path, by CUBIC, or at a fixed rate for each connection, on links that you own.",
        set: |policy, text| {
            policy.congestion = match text {
                "auto" => CongestionLaw::Auto,
                "cubic" => CongestionLaw::Cubic,
                other => CongestionLaw::Rate { bits_per_s: parse_rate(other.strip_prefix("rate:")?)? },
            };
            Some(())
        },
        print: |policy| match policy.congestion {
            CongestionLaw::Auto => "auto".to_owned(),
            CongestionLaw::Cubic => "cubic".to_owned(),
            CongestionLaw::Rate { bits_per_s } => format!("rate:{}", print_exact(bits_per_s, &RATE_UNITS)),
        },
    },
    Key {
        name: "store.quota",
        takes: "a size such as 500GiB, 2TB or a number of bytes (at least 1MiB), or unlimited",
        help: "Bytes that contents may take on disk; least recently used ones that are not pinned make room, when the next put or get needs it: a lower quota deletes nothing by itself.",
        set: |policy, text| {
            /// A smaller store holds no useful content.
            const QUOTA_MIN: u64 = 1 << 20;
            policy.store_quota_bytes = match text {
                "unlimited" => u64::MAX,
                _ => parse_size(text).filter(|bytes| (QUOTA_MIN..u64::MAX).contains(bytes))?,
            };
            Some(())
        },
        print: |policy| match policy.store_quota_bytes {
            u64::MAX => "unlimited".to_owned(),
            bytes => print_exact(bytes, &SIZE_UNITS),
        },
    },
    Key {
        name: "transfer.inflight_chunks",
        takes: "a whole number from 1 to 128",
        help: "Chunks that one worker has asked of one source and not yet got, at most; each takes 256 KiB of memory.",
        set: |policy, text| within(text, 1, 128).map(|value| policy.transfer_inflight_chunks = value),
        print: |policy| policy.transfer_inflight_chunks.to_string(),
    },
    Key {
        name: "transfer.jobs",
        takes: "a whole number from 1 to 256",
        help: "Fetches under way at once on this node; further ones are refused.",
        set: |policy, text| within(text, 1, 256).map(|value| policy.transfer_jobs_max = value),
        print: |policy| policy.transfer_jobs_max.to_string(),
    },
    Key {
        name: "session.grace_s",
        takes: "a whole number of seconds from 0 to 86400",
        help: "How long a peer's workers stay admitted after its session was lost and nothing went on with them, so that its controller can restart.",
        set: |policy, text| within(text, 0, 86_400).map(|value| policy.session_grace_s = value),
        print: |policy| policy.session_grace_s.to_string(),
    },
    Key {
        name: "discovery.hearsay",
        takes: "on or off",
        help: "Whether holders that known peers tell of are asked too.",
        set: |policy, text| {
            policy.discovery_hearsay = match text {
                "on" => true,
                "off" => false,
                _ => return None,
            };
            Some(())
        },
        print: |policy| if policy.discovery_hearsay { "on" } else { "off" }.to_owned(),
    },
    Key {
        name: "workers.cpus",
        takes: "auto, off, or CPU numbers such as 2,3,4",
        help: "Where workers are pinned: worker i on the i-th of these CPUs.",
        set: |policy, text| {
            policy.workers_cpus = match text {
                "auto" => Pinning::Auto,
                "off" => Pinning::Off,
                list => {
                    let cpus = list.split(',').map(|cpu| cpu.trim().parse().ok()).collect::<Option<Vec<u16>>>()?;
                    if cpus.len() > CPUS_MAX {
                        return None;
                    }
                    Pinning::Cpus(cpus)
                }
            };
            Some(())
        },
        print: |policy| match &policy.workers_cpus {
            Pinning::Auto => "auto".to_owned(),
            Pinning::Off => "off".to_owned(),
            Pinning::Cpus(cpus) => cpus.iter().map(u16::to_string).collect::<Vec<_>>().join(","),
        },
    },
];

impl Policy {
    /// This policy with one key changed.
    ///
    /// # Errors
    /// When there is no such key or the value does not fit it.
    pub fn with(mut self, key: &str, value: &str) -> Result<Self, PolicyError> {
        let Some(known) = KEYS.iter().find(|known| known.name == key) else {
            return Err(PolicyError::UnknownKey {
                key: quoted(key),
                suggestion: nearest(key, KEYS.iter().map(|known| known.name)),
            });
        };
        (known.set)(&mut self, value.trim()).ok_or_else(|| PolicyError::BadValue {
            key: known.name,
            value: quoted(value),
            takes: known.takes,
        })?;
        Ok(self)
    }

    /// This policy with one `KEY=VALUE` applied.
    ///
    /// # Errors
    /// As [`with`](Self::with), or when there is no `=`.
    pub fn with_assignment(self, text: &str) -> Result<Self, PolicyError> {
        let (key, value) = text.split_once('=').ok_or_else(|| PolicyError::NoAssignment { text: quoted(text) })?;
        self.with(key.trim(), value)
    }

    /// Every key with its value as text; feeding these to [`with`](Self::with) gives the same policy.
    pub fn entries(&self) -> impl Iterator<Item = (&'static Key, String)> + '_ {
        KEYS.iter().map(|key| (key, (key.print)(self)))
    }
}

/// What changes from one policy to another: key, old value, new value.
#[must_use]
pub fn diff(old: &Policy, new: &Policy) -> Vec<(&'static str, String, String)> {
    old.entries()
        .zip(new.entries())
        .filter(|((_, before), (_, after))| before != after)
        .map(|((key, before), (_, after))| (key.name, before, after))
        .collect()
}

fn within<T: TryFrom<u64>>(text: &str, min: u64, max: u64) -> Option<T> {
    let value: u64 = text.parse().ok()?;
    if (min..=max).contains(&value) { T::try_from(value).ok() } else { None }
}

fn parse_basis_points(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 2 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let whole: u16 = within(whole, 0, 100)?;
    let fraction: u16 = format!("{fraction:0<2}").parse().ok()?;
    let total = whole * 100 + fraction;
    (total <= 10_000).then_some(total)
}

fn print_basis_points(value: u16) -> String {
    let text = format!("{}.{:02}", value / 100, value % 100);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Units of sizes, and their bytes.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Units of rates, and their bits a second.
const RATE_UNITS: [(&str, u64); 3] = [("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000)];

/// A number in the largest unit that leaves nothing of it out, as it is read again.
fn print_exact(value: u64, units: &[(&str, u64)]) -> String {
    let exact = units.iter().filter(|(_, factor)| *factor > 1 && value > 0 && value.is_multiple_of(*factor));
    match exact.max_by_key(|(_, factor)| *factor) {
        Some((unit, factor)) => format!("{}{unit}", value / factor),
        None => value.to_string(),
    }
}

/// Reads a size: a number of bytes, or a number with `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024) or `KB`, `MB`, `GB`,
/// `TB` (powers of 1000). `None` for anything else and for sizes beyond 64 bits.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, factor) = SIZE_UNITS
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number.trim_end(), *factor)))
        .unwrap_or((text, 1));
    if !number.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Reads bits a second: a number, with `k`, `M` or `G` (powers of 1000). `None` for anything else and out of bounds.
fn parse_rate(text: &str) -> Option<u64> {
    let found = RATE_UNITS.iter().find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, *factor)));
    let (number, factor) = found.unwrap_or((text, 1));
    if !number.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|rate| (RATE_MIN..=RATE_MAX).contains(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_prints_what_it_reads() {
        let changed = ["always", "7", "1.25", "rate:500M", "1GiB", "9", "3", "0", "off", "4,2"];
        let mut policy = Policy::default();
        for (key, value) in KEYS.iter().zip(changed) {
            policy = policy.with(key.name, value).unwrap();
        }
        let printed: Vec<_> = policy.entries().map(|(_, value)| value).collect();
        assert_eq!(printed, changed);
        assert_eq!(diff(&Policy::default(), &policy).len(), KEYS.len(), "every key was really changed");
        for start in [Policy::default(), policy] {
            let mut again = Policy::default();
            for (key, value) in start.entries() {
                again = again.with(key.name, &value).unwrap();
            }
            assert_eq!(again, start);
        }
    }

    #[test]
    fn sizes_and_rates_are_shown_whole_in_the_largest_unit() {
        let shown = |key, value| {
            let policy = Policy::default().with(key, value).unwrap();
            policy.entries().find(|(known, _)| known.name == key).map(|(_, value)| value).unwrap()
        };
        for (set, show) in
            [("2000GB", "2TB"), ("1536MiB", "1536MiB"), ("1048577", "1048577"), ("unlimited", "unlimited")]
        {
            assert_eq!(shown("store.quota", set), show);
        }
        for (set, show) in [("rate:1000k", "rate:1M"), ("rate:1500000", "rate:1500k"), ("rate:123456", "rate:123456")] {
            assert_eq!(shown("congestion", set), show);
        }
    }

    #[test]
    fn bad_values_say_what_the_key_takes() {
        let bad = [
            ("fec.mode", "sometimes"),
            ("fec.max_overhead_pct", "101"),
            ("fec.max_overhead_pct", "-1"),
            ("fec.min_loss_pct", "0.123"),
            ("fec.min_loss_pct", "100.01"),
            ("congestion", "bbr"),
            ("congestion", "rate:"),
            ("congestion", "rate:99k"),
            ("congestion", "rate:-1M"),
            ("congestion", "rate:1001G"),
            ("store.quota", "0"),
            ("store.quota", "99999999TiB"),
            ("store.quota", "-5GiB"),
            ("transfer.inflight_chunks", "0"),
            ("transfer.jobs", ""),
            ("session.grace_s", "1e9"),
            ("discovery.hearsay", "maybe"),
            ("workers.cpus", "1,x"),
            ("workers.cpus", ""),
        ];
        for (key, value) in bad {
            let error = Policy::default().with(key, value).unwrap_err();
            assert!(matches!(error, PolicyError::BadValue { .. }), "{key}={value}: {error}");
        }
    }

    #[test]
    fn an_unknown_key_comes_with_a_suggestion() {
        let error = Policy::default().with_assignment("fec.mod=auto").unwrap_err();
        assert_eq!(error.to_string(), "unknown policy key \"fec.mod\"; did you mean \"fec.mode\"?");
        let error = Policy::default().with_assignment("zzz=1").unwrap_err();
        assert_eq!(error.to_string(), "unknown policy key \"zzz\"; pangeactl policy show lists them");
        assert!(matches!(Policy::default().with_assignment("fec.mode"), Err(PolicyError::NoAssignment { .. })));
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, bytes) in [("0", 0), ("17", 17), ("1KiB", 1024), ("2 GB", 2_000_000_000), ("3TiB", 3 << 40)] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "GiB", "1.5GiB", "1gib", "-1", "+1", "99999999999999999999", "99999999TiB"] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }
}

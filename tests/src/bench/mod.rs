//! What is measured, against whom, and how it is shown.
//!
//! | file | job |
//! |---|---|
//! | `path.rs` | the emulated paths and what each could carry |
//! | `flow.rs` | bytes over time, and rates within them |
//! | `nodes.rs` | two nodes at the ends of a path |
//! | `tcp.rs`, `bare.rs`, `nginx.rs`, `sendme.rs` | peers: TCP, a bare quinn stream, a web server, sendme |
//! | `bulk.rs` | cases `lossy`, `long`, `satellite`, `near`, `slow`, `uneven`, and the redundancy in them |
//! | `objects.rs` | case `objects` |
//! | `sharing.rs` | cases `fair`, `several`, `change` |
//! | `local.rs` | cases `put`, `get`, `local`, `policy` on loopback, and `veth` |
//! | `bound.rs` | what a get must do beside what a bare stream does |
//! | `codec.rs`, `isal.c` | case `codec` |
//! | `report.rs`, `plot.rs` | tables, JSON, plots |
//!
//! Every transfer over an emulated path has a fresh path and fresh nodes unless its case says otherwise, and counts from
//! the request to the last byte verified and synced. Loss strikes both ways.

pub mod bare;
pub mod bound;
pub mod bulk;
pub mod codec;
pub mod flow;
pub mod laden;
pub mod local;
mod nginx;
pub mod nodes;
pub mod objects;
pub mod path;
pub mod plot;
pub mod report;
pub mod sendme;
pub mod sharing;
pub mod tcp;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use bare::{Bare, Law};
use clap::ValueEnum;
use plot::{Plot, Scale, Series};
use report::{Goal, Row};

use crate::netlab::{Pair, unavailable};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Case {
    /// Put of a cached file
    Put,
    /// Get from a peer over loopback, against a bare quinn stream
    Get,
    /// Local get, against nginx + curl
    Local,
    /// A policy change
    Policy,
    /// 64 MiB at 100 Mbit/s, RTT 50 ms, losing up to 10 % (root)
    Lossy,
    /// 128 MiB at 300 Mbit/s, RTT 150 ms, losing 1 %: a new path and a known one (root)
    Long,
    /// 16 MiB at 20 Mbit/s, RTT 300 ms, losing 3 % (root)
    Satellite,
    /// 32 MiB at 100 Mbit/s, RTT 2 to 10 ms, a queue of one bandwidth-delay product (root)
    Near,
    /// 4 to 16 MiB at 2 to 10 Mbit/s, a queue of one bandwidth-delay product (root)
    Slow,
    /// 32 MiB at 100 Mbit/s, each packet up to 10 ms early or late (root)
    Uneven,
    /// 256 KiB objects one after another at 100 Mbit/s, RTT 50 ms (root)
    Objects,
    /// Against one TCP flow on a shared bottleneck (root)
    Fair,
    /// Two to six flows on a shared bottleneck (root)
    Several,
    /// Rate and round trip change in mid-transfer (root)
    Change,
    /// Get over a clean veth, against a bare quinn stream (root)
    Veth,
    /// The erasure code on one core, against the crate reed-solomon-erasure and ISA-L
    Codec,
    /// The ratios that guard against regressions, under 90 s; only when asked for (root)
    Short,
}

impl Case {
    /// All that are measured without a wish.
    pub const ALL: [Self; 16] = [
        Self::Put,
        Self::Get,
        Self::Local,
        Self::Policy,
        Self::Lossy,
        Self::Long,
        Self::Satellite,
        Self::Near,
        Self::Slow,
        Self::Uneven,
        Self::Objects,
        Self::Fair,
        Self::Several,
        Self::Change,
        Self::Veth,
        Self::Codec,
    ];

    /// Why it cannot be measured here, if so.
    #[must_use]
    pub fn unavailable(self) -> Option<crate::netlab::Error> {
        match self {
            Self::Put | Self::Get | Self::Local | Self::Policy | Self::Codec => None,
            _ => unavailable(),
        }
    }
}

/// What somebody else can do.
pub enum Peer<'a> {
    /// A program that sends a file.
    Sendme(sendme::Sendme<'a>),
    /// A TCP flow.
    Tcp(tcp::Tcp),
    /// A bare quinn stream.
    Bare(Bare),
}

impl<'a> Peer<'a> {
    /// The peers of the cases over emulated paths: name and how to connect one.
    const ALL: [&'static str; 5] = ["TCP BBR", "TCP CUBIC", "quinn BBR", "quinn CUBIC", "sendme"];

    /// Connects one over a path; `None` = not to be had here.
    fn connect(name: &str, pair: &'a Pair) -> Option<Self> {
        match name {
            "sendme" => sendme::Sendme::find(pair).map(Self::Sendme),
            "TCP BBR" => tcp::Tcp::connect(pair, "bbr").map(Self::Tcp),
            "TCP CUBIC" => tcp::Tcp::connect(pair, "cubic").map(Self::Tcp),
            "quinn BBR" => Some(Self::Bare(Bare::start(Some(pair), Law::Bbr, false))),
            _ => Some(Self::Bare(Bare::start(Some(pair), Law::Cubic, false))),
        }
    }

    fn fetch(&mut self, bytes: u64, limit: Duration) -> flow::Flow {
        match self {
            Self::Sendme(sendme) => sendme.fetch(bytes, limit),
            Self::Tcp(tcp) => tcp.fetch(bytes, limit),
            Self::Bare(bare) => bare.fetch(bytes, limit),
        }
    }
}

/// How to measure, and what was found.
#[derive(Debug, Clone)]
pub struct Bench {
    /// MiB to move in the loopback and veth cases.
    pub mib: u64,
    /// Repetitions; the median counts.
    pub runs: usize,
    /// Repetitions of peers' transfers over emulated paths.
    pub peer_runs: usize,
    /// Objects of the case `objects` that count.
    pub objects: usize,
    /// Seconds that flows share a bottleneck.
    pub seconds: u64,
    /// Seconds that a peer's transfer may take at most; 0 = no peers.
    pub peer_seconds: u64,
    /// Measure only what has this in its name.
    pub only: Option<String>,
    /// Found so far.
    pub rows: Vec<Row>,
    /// Goodput over loss, for each of those compared.
    pub goodput: Vec<(String, Vec<(f64, f64)>)>,
    /// Times of single objects in ms, for each of those compared and each loss.
    pub times: Vec<(String, Vec<f64>)>,
}

impl Bench {
    /// Measures a case.
    pub fn run(&mut self, case: Case) {
        // These are measured whole; the others look at each of their rows.
        let whole = matches!(case, Case::Put | Case::Get | Case::Local | Case::Policy | Case::Veth);
        let name = case.to_possible_value().map(|value| format!("{} pangea", value.get_name()));
        if whole && !name.is_none_or(|name| self.wants(&name)) {
            return;
        }
        match case {
            Case::Get => {
                local::loopback(self);
                local::transfers(self, case);
            }
            Case::Put | Case::Local => local::transfers(self, case),
            Case::Policy => local::policy(self),
            Case::Lossy => bulk::lossy(self),
            Case::Long => bulk::long(self),
            Case::Satellite => bulk::satellite(self),
            Case::Near => bulk::near(self),
            Case::Slow => bulk::slow(self),
            Case::Uneven => bulk::uneven(self),
            Case::Objects => objects::objects(self),
            Case::Fair => self.repeated(sharing::fair),
            Case::Several => self.repeated(sharing::several),
            Case::Change => self.repeated(sharing::change),
            Case::Veth => local::veth(self),
            Case::Codec => codec::codec(self),
            Case::Short => self.short(),
        }
    }

    /// Measures a case as often as wanted, and keeps of each figure the median.
    fn repeated(&mut self, case: fn(&mut Self)) {
        let before = std::mem::take(&mut self.rows);
        for _ in 0..self.runs.max(1) {
            case(self);
        }
        let rows = std::mem::replace(&mut self.rows, before);
        self.rows.extend(report::medians(&rows));
    }

    /// A few ratios with generous floors: a regression shows, a busy machine does not.
    fn short(&mut self) {
        const FLOOR: f64 = 0.65;
        const SLOWER_MAX: f64 = 1.3;
        for loss_pct in [0.0, 5.0] {
            bulk::short(self, loss_pct, FLOOR);
        }
        objects::short(self, SLOWER_MAX);
    }

    /// Whether something of this name is to be measured.
    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    fn peer_limit(&self) -> Duration {
        Duration::from_secs(self.peer_seconds)
    }

    /// The peers to compare with; none when they are not wanted.
    fn peers(&self, case: &str) -> Vec<&'static str> {
        let all = if self.peer_seconds == 0 { [].iter() } else { Peer::ALL.iter() };
        all.copied().filter(|name| self.wants(&format!("{case} {name}"))).collect()
    }

    fn add(&mut self, row: Row) {
        eprintln!("{}", row.line());
        self.rows.push(row);
    }

    fn add_goodput(&mut self, who: &str, loss_pct: f64, mbit: f64) {
        match self.goodput.iter_mut().find(|series| series.0 == who) {
            Some(series) => series.1.push((loss_pct, mbit)),
            None => self.goodput.push((who.to_owned(), vec![(loss_pct, mbit)])),
        }
    }

    /// Whether every goal was reached.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.rows.iter().all(|row| row.passes() != Some(false))
    }

    /// All that was found.
    #[must_use]
    pub fn json(&self) -> Value {
        let rows: Vec<_> = self.rows.iter().map(Row::json).collect();
        json!({ "machine": report::machine(), "rows": rows, "goodput_mbit_over_loss_pct": self.goodput, "object_ms": self.times })
    }

    /// Writes results and plots into a folder.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("results.json"), format!("{:#}\n", self.json()))?;
        std::fs::write(folder.join("results.md"), report::markdown(&self.rows, &report::machine()))?;
        if !self.goodput.is_empty() {
            std::fs::write(folder.join("goodput-over-loss.svg"), self.goodput_plot().svg())?;
        }
        if !self.times.is_empty() {
            std::fs::write(folder.join("object-times.svg"), self.times_plot().svg())?;
        }
        Ok(())
    }

    fn goodput_plot(&self) -> Plot {
        let series = self.goodput.iter().map(|(name, points)| Series { name: name.clone(), points: points.clone() });
        Plot {
            title: "Goodput over loss: 64 MiB, 100 Mbit/s, RTT 50 ms".to_owned(),
            x: Scale::Steps { label: "packets lost by chance, %".to_owned(), at: bulk::LOSSES_PCT.to_vec() },
            y: Scale::Linear { label: "Mbit/s".to_owned(), from: 0.0, to: 100.0 },
            series: series.collect(),
            marks: true,
        }
    }

    fn times_plot(&self) -> Plot {
        let distribution = |times: &[f64]| {
            let mut sorted = times.to_vec();
            sorted.sort_by(f64::total_cmp);
            let share = |place: usize| (place + 1) as f64 / sorted.len() as f64 * 100.0;
            sorted.iter().enumerate().map(|(place, &ms)| (ms, share(place))).collect()
        };
        let series = self.times.iter().map(|(name, times)| Series { name: name.clone(), points: distribution(times) });
        Plot {
            title: "256 KiB objects one after another: 100 Mbit/s, RTT 50 ms".to_owned(),
            x: Scale::Log { label: "ms from request to safe".to_owned(), from: 50.0, to: 5000.0 },
            y: Scale::Linear { label: "% of objects within".to_owned(), from: 0.0, to: 100.0 },
            series: series.collect(),
            marks: false,
        }
    }
}

/// A goal when `so`.
fn goal_when(row: Row, so: bool, goal: Goal) -> Row {
    if so { row.goal(goal) } else { row }
}

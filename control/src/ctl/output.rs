//! Text for people, JSON for scripts, exit status for both.

use std::fmt;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{BinaryBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use pangea_client::ClientError;
use pangea_ipc::failure::FailureCode;
use serde::Serialize;
use serde_json::{Value, json};

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct CtlError {
    /// What kind of no.
    pub code: FailureCode,
    /// A sentence.
    pub text: String,
}

impl From<ClientError> for CtlError {
    fn from(error: ClientError) -> Self {
        Self { code: error.code(), text: error.to_string() }
    }
}

impl CtlError {
    /// A failure of this program or its surroundings.
    pub fn new(code: FailureCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// A file that is to be read cannot be.
    #[must_use]
    pub fn input(path: &Path, error: &std::io::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::NotFound => FailureCode::NotFound,
            ErrorKind::PermissionDenied => FailureCode::Denied,
            _ => FailureCode::Storage,
        };
        Self::new(code, format!("{}: {error}", path.display()))
    }

    /// The command line was wrong.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(FailureCode::Invalid, text)
    }

    /// What the shell sees.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self.code {
            FailureCode::Invalid => 2,
            FailureCode::NotFound => 3,
            FailureCode::Denied => 4,
            FailureCode::Unavailable | FailureCode::Busy | FailureCode::Limit => 5,
            FailureCode::Full => 6,
            FailureCode::Cancelled => 130,
            _ => 1,
        }
    }

    /// Says it on stderr.
    pub fn print(&self, json: bool) {
        if json {
            eprintln!("{}", json!({"error": {"code": self.code, "text": self.text}}));
        } else {
            eprintln!("pangeactl: {}", self.text);
        }
    }
}

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// One JSON document instead of text.
    pub json: bool,
}

impl Output {
    /// Prints a result: the document for scripts, or the text for people.
    ///
    /// # Errors
    /// When stdout cannot be written; that its reader has gone is none.
    pub fn print(&self, document: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), CtlError> {
        let line = if self.json {
            serde_json::to_string_pretty(document).map_err(|e| CtlError::new(FailureCode::Internal, e.to_string()))?
        } else {
            text()
        };
        write_line(line).map(drop)
    }

    /// Prints one of several results: for scripts a document on one line. Says whether anybody still reads.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn print_line(&self, document: &Value, text: impl FnOnce() -> String) -> Result<bool, CtlError> {
        write_line(if self.json { document.to_string() } else { text() })
    }

    /// Prints that something was done: nothing for people, an empty document for scripts.
    ///
    /// # Errors
    /// As [`print`](Self::print).
    pub fn done(&self) -> Result<(), CtlError> {
        self.print(&json!({}), String::new)
    }

    /// A progress bar on stderr, when that is a terminal and no JSON was asked for.
    #[must_use]
    pub fn bar(&self, total: Option<u64>, what: &str) -> ProgressBar {
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::no_length(),
        };
        let shown = !self.json && std::io::stderr().is_terminal();
        bar.set_draw_target(if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
        let template = if total.is_some() {
            "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}{pace}"
        } else {
            "{msg} {spinner} {binary_bytes}{pace}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> ").with_key("pace", pace));
        }
        bar.set_message(what.to_owned());
        bar
    }
}

/// How fast it goes and how long it will take; nothing before anything has come, when nobody knows.
fn pace(state: &ProgressState, to: &mut dyn fmt::Write) {
    if state.pos() == 0 {
        return;
    }
    // A bar that cannot be drawn is no reason to fail.
    let _ = write!(to, ", {}/s", BinaryBytes(state.per_sec() as u64));
    if state.len().is_some() {
        let _ = write!(to, ", {:#} left", HumanDuration(state.eta()));
    }
}

fn write_line(mut line: String) -> Result<bool, CtlError> {
    if !line.is_empty() && !line.ends_with('\n') {
        line.push('\n');
    }
    let mut stdout = std::io::stdout();
    match stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CtlError::new(FailureCode::Storage, format!("stdout: {error}"))),
    }
}

/// Bytes in human units.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS.iter().skip(1) {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// Bytes in some time, in human units.
#[must_use]
pub fn rate(bytes: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64().max(1e-9);
    format!("{}/s", size((bytes as f64 / seconds) as u64))
}

/// Microseconds in human units.
#[must_use]
pub fn micros(us: u32) -> String {
    if us < 10_000 { format!("{us} us") } else { format!("{:.1} ms", f64::from(us) / 1000.0) }
}

/// Columns, aligned; the first row is the heading.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A document with one key.
#[must_use]
pub fn keyed(key: &str, value: impl Serialize) -> Value {
    json!({ key: value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_human() {
        assert_eq!([size(0), size(1023), size(1024), size(3 << 30)], ["0 B", "1023 B", "1.0 KiB", "3.0 GiB"]);
        assert_eq!(rate(1 << 20, Duration::from_millis(500)), "2.0 MiB/s");
        assert_eq!((micros(480), micros(50_000)), ("480 us".to_owned(), "50.0 ms".to_owned()));
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["A".to_owned(), "BB".to_owned()], vec!["ccc".to_owned(), "d".to_owned()]];
        assert_eq!(table(&rows), "A    BB\nccc  d");
    }

    #[test]
    fn exit_statuses_tell_kinds_of_failure_apart() {
        assert_eq!(CtlError::usage("x").exit_status(), 2);
        assert_eq!(CtlError::new(FailureCode::NotFound, "x").exit_status(), 3);
        assert_eq!(CtlError::new(FailureCode::Cancelled, "x").exit_status(), 130);
        assert_eq!(CtlError::new(FailureCode::Storage, "x").exit_status(), 1);
    }
}

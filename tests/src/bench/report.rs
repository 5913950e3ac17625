//! What was measured, as lines for people, a Markdown table and JSON.

use std::fmt::Write;

use serde_json::{Value, json};

/// What a figure must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

/// Who was measured.
pub const PANGEA: &str = "pangea";

/// One figure.
#[derive(Debug, Clone)]
pub struct Row {
    /// The case it belongs to.
    pub case: &'static str,
    /// What was measured, in words.
    pub what: String,
    /// Who was measured.
    pub who: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it is compared with, in the same unit.
    pub against: Option<f64>,
    /// What the figure must be; its ratio, when it is compared.
    pub goal: Option<Goal>,
    /// What else is to be known.
    pub note: String,
}

impl Row {
    /// A figure of Pangea without a goal.
    #[must_use]
    pub fn new(case: &'static str, what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        let (what, who) = (what.into(), PANGEA.to_owned());
        Self { case, what, who, value, unit, against: None, goal: None, note: String::new() }
    }

    /// The same figure of somebody else.
    #[must_use]
    pub fn who(self, who: impl Into<String>) -> Self {
        Self { who: who.into(), ..self }
    }

    /// Compared with this.
    #[must_use]
    pub fn against(self, reference: f64) -> Self {
        Self { against: Some(reference), ..self }
    }

    /// With a goal.
    #[must_use]
    pub fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    /// With a note.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    /// The figure's ratio to what it is compared with.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        self.against.map(|reference| self.value / reference)
    }

    /// What a goal is about: the ratio when there is one.
    fn measure(&self) -> f64 {
        self.ratio().unwrap_or(self.value)
    }

    /// Whether the goal is reached; `None` = there is none. A figure that is no number reaches no goal.
    #[must_use]
    pub fn passes(&self) -> Option<bool> {
        let measure = self.measure();
        self.goal.map(|goal| match goal {
            Goal::AtLeast(least) => measure >= least,
            Goal::AtMost(most) => measure <= most,
        })
    }

    fn cells(&self) -> [String; 8] {
        let number = |value: f64| format!("{value:.2}");
        let goal = match self.goal {
            None => String::new(),
            Some(Goal::AtLeast(least)) => format!(">= {least}"),
            Some(Goal::AtMost(most)) => format!("<= {most}"),
        };
        let passes = match self.passes() {
            None => "",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        [
            self.what.clone(),
            self.who.clone(),
            format!("{:.2} {}", self.value, self.unit),
            self.against.map(number).unwrap_or_default(),
            self.ratio().map(|ratio| format!("{ratio:.3}")).unwrap_or_default(),
            goal,
            passes.to_owned(),
            self.note.clone(),
        ]
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let [what, who, value, against, ratio, goal, passes, note] = self.cells();
        let case = self.case;
        format!("{case:<10} {what:<46} {who:<14} {value:>14} {against:>8} {ratio:>6} {goal:>8} {passes:<4} {note}")
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let (goal, bound) = match self.goal {
            None => (None, None),
            Some(Goal::AtLeast(least)) => (Some(least), Some("at_least")),
            Some(Goal::AtMost(most)) => (Some(most), Some("at_most")),
        };
        json!({
            "case": self.case, "what": self.what, "who": self.who, "value": self.value, "unit": self.unit,
            "against": self.against, "ratio": self.ratio(), "goal": goal, "bound": bound, "pass": self.passes(),
            "note": self.note,
        })
    }
}

/// The heads of [`Row::line`]'s columns.
#[must_use]
pub fn head() -> String {
    format!(
        "{:<10} {:<46} {:<14} {:>14} {:>8} {:>6} {:>8} {:<4} note",
        "case", "what", "who", "value", "of", "ratio", "goal", "pass"
    )
}

/// A Markdown table for each case, of a [`machine`].
#[must_use]
pub fn markdown(rows: &[Row], machine: &str) -> String {
    let mut text = format!("# Results\n\n{machine}\n");
    let mut case = "";
    for row in rows {
        if row.case != case {
            case = row.case;
            let _ = write!(
                text,
                "\n## {case}\n\n| what | who | value | of | ratio | goal | pass | note |\n|---|---|---|---|---|---|---|---|\n"
            );
        }
        let _ = writeln!(text, "| {} |", row.cells().join(" | "));
    }
    text
}

/// Of the rows that tell the same thing the middle one, in the order of their first: its note names the others too.
#[must_use]
pub fn medians(rows: &[Row]) -> Vec<Row> {
    let same = |a: &Row, b: &Row| (a.case, &a.what, &a.who) == (b.case, &b.what, &b.who);
    let mut middle = Vec::<Row>::new();
    for row in rows {
        if middle.iter().any(|known| same(known, row)) {
            continue;
        }
        let mut runs: Vec<&Row> = rows.iter().filter(|other| same(other, row)).collect();
        let shown: Vec<_> = runs.iter().map(|run| format!("{:.3}", run.measure())).collect();
        runs.sort_by(|a, b| a.measure().total_cmp(&b.measure()));
        let Some(&median) = runs.get((runs.len() - 1) / 2) else { continue };
        let note = if shown.len() > 1 {
            format!("{}; that run: {}", shown.join(" "), median.note)
        } else {
            median.note.clone()
        };
        middle.push(median.clone().note(note));
    }
    middle
}

/// Where and when: results are of one machine at one time.
#[must_use]
pub fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown CPU", |(_, name)| name.trim());
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let said = |program: &str, argument: &str| {
        let output = std::process::Command::new(program).arg(argument).output().ok()?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    let date = said("date", "+%F").unwrap_or_else(|| "unknown date".to_owned());
    let kernel = said("uname", "-r").unwrap_or_else(|| "unknown".to_owned());
    let kernel = kernel.split('-').next().unwrap_or_default(); // what follows is whose build it is
    format!("{date}, {count} CPUs, {model}, Linux {kernel}")
}

/// The middle of some figures; the lower one of two.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The smallest figure that this share of them does not exceed.
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_about_the_ratio_when_there_is_one_and_no_number_reaches_none() {
        let row = |value| Row::new("lossy", "bulk", value, "Mbit/s");
        assert_eq!(row(93.0).passes(), None);
        assert_eq!(row(93.0).against(100.0).goal(Goal::AtLeast(0.92)).passes(), Some(true));
        assert_eq!(row(91.0).against(100.0).goal(Goal::AtLeast(0.92)).passes(), Some(false));
        assert_eq!(row(0.0).goal(Goal::AtMost(0.0)).passes(), Some(true));
        assert_eq!(row(f64::NAN).goal(Goal::AtMost(1.0)).passes(), Some(false));
    }

    #[test]
    fn of_repeated_rows_the_middle_one_stays_and_tells_of_the_others() {
        let row = |what, value| Row::new("fair", what, value, "share");
        let rows = [row("a", 0.9), row("b", 0.1), row("a", 0.5), row("b", 0.3), row("a", 0.6)];
        let middle = medians(&rows);
        let shown: Vec<_> = middle.iter().map(|row| (row.what.as_str(), row.value, row.note.as_str())).collect();
        assert_eq!(shown, [("a", 0.6, "0.900 0.500 0.600; that run: "), ("b", 0.1, "0.100 0.300; that run: ")]);
        assert_eq!(medians(&rows[..2])[0].note, "");
    }

    #[test]
    fn quantiles_of_few_and_of_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        assert_eq!(quantile(&[1.0], 0.99).to_bits(), 1.0_f64.to_bits());
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&hundred, 0.99).to_bits(), 99.0_f64.to_bits());
        assert_eq!(quantile(&hundred, 1.0).to_bits(), 100.0_f64.to_bits());
        assert_eq!(quantile(&hundred, 0.0).to_bits(), 1.0_f64.to_bits());
        assert!(median(&[]).is_nan());
    }
}

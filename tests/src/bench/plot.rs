//! Plots as SVG: a title, two labelled axes, lines and their legend.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 440.0;
/// Where the axes are.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 660.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 384.0;
/// Distinguishable also to the colour-blind (Okabe and Ito).
const COLOURS: [&str; 7] = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
/// Lines beyond the colours are dashed.
const DASHES: [&str; 3] = ["none", "6 3", "2 3"];

/// An axis.
#[derive(Debug, Clone)]
pub enum Scale {
    /// Even.
    Linear {
        /// What it shows.
        label: String,
        /// Its least value.
        from: f64,
        /// Its largest.
        to: f64,
    },
    /// By powers of ten.
    Log {
        /// What it shows.
        label: String,
        /// Its least value.
        from: f64,
        /// Its largest.
        to: f64,
    },
    /// These values, at equal distances.
    Steps {
        /// What it shows.
        label: String,
        /// The values, ascending.
        at: Vec<f64>,
    },
}

impl Scale {
    fn label(&self) -> &str {
        match self {
            Self::Linear { label, .. } | Self::Log { label, .. } | Self::Steps { label, .. } => label,
        }
    }

    /// Where a value lies, 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let place = match self {
            Self::Linear { from, to, .. } => (value - from) / (to - from),
            Self::Log { from, to, .. } => (value / from).ln() / (to / from).ln(),
            Self::Steps { at, .. } => {
                let index = at.iter().position(|&step| step >= value).unwrap_or(at.len().saturating_sub(1));
                index as f64 / at.len().saturating_sub(1).max(1) as f64
            }
        };
        place.clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        match self {
            Self::Linear { from, to, .. } => (0..=5).map(|step| from + (to - from) / 5.0 * f64::from(step)).collect(),
            Self::Log { from, to, .. } => {
                let all = (-3..=6).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)));
                all.filter(|tick| (*from..=*to).contains(tick)).collect()
            }
            Self::Steps { at, .. } => at.clone(),
        }
    }
}

/// One line.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// A plot.
#[derive(Debug, Clone)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// To the right.
    pub x: Scale,
    /// Upwards.
    pub y: Scale,
    /// The lines.
    pub series: Vec<Series>,
    /// Whether each point has a mark.
    pub marks: bool,
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Plot {
    /// As an SVG document.
    #[must_use]
    pub fn svg(&self) -> String {
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"28\" font-size=\"16\" font-weight=\"bold\">{}</text>\n",
            escaped(&self.title)
        );
        let x = |value: f64| LEFT + (RIGHT - LEFT) * self.x.place(value);
        let y = |value: f64| BOTTOM - (BOTTOM - TOP) * self.y.place(value);
        for tick in self.x.ticks() {
            let at = x(tick);
            let _ = writeln!(out, "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{BOTTOM}\" stroke=\"#ddd\"/>");
            let below = BOTTOM + 18.0;
            let _ = writeln!(out, "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{tick}</text>");
        }
        for tick in self.y.ticks() {
            let at = y(tick);
            let _ = writeln!(out, "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{RIGHT}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>");
            let (before, base) = (LEFT - 8.0, at + 4.0);
            let _ = writeln!(out, "<text x=\"{before}\" y=\"{base:.1}\" text-anchor=\"end\">{tick}</text>");
        }
        let (middle, under) = (f64::midpoint(LEFT, RIGHT), BOTTOM + 42.0);
        let x_label = escaped(self.x.label());
        let _ = writeln!(out, "<text x=\"{middle}\" y=\"{under}\" text-anchor=\"middle\">{x_label}</text>");
        let (middle, y_label) = (f64::midpoint(TOP, BOTTOM), escaped(self.y.label()));
        let turned = format!("transform=\"translate(18 {middle}) rotate(-90)\" text-anchor=\"middle\"");
        let _ = writeln!(out, "<text {turned}>{y_label}</text>");
        for (place, series) in self.series.iter().enumerate() {
            let colour = COLOURS[place % COLOURS.len()];
            let dash = DASHES[place / COLOURS.len() % DASHES.len()];
            let width = if place == 0 { 3.0 } else { 1.8 };
            let points: Vec<_> = series.points.iter().map(|point| (x(point.0), y(point.1))).collect();
            let line: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let stroke = format!("stroke=\"{colour}\" stroke-width=\"{width}\" stroke-dasharray=\"{dash}\"");
            let _ = writeln!(out, "<polyline points=\"{}\" fill=\"none\" {stroke}/>", line.join(" "));
            for (x, y) in points.iter().filter(|_| self.marks) {
                let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
            }
            let (from, to, text) = (RIGHT + 16.0, RIGHT + 44.0, RIGHT + 50.0);
            let (at, base) = (TOP + 10.0 + 22.0 * place as f64, TOP + 14.0 + 22.0 * place as f64);
            let _ = writeln!(out, "<line x1=\"{from}\" y1=\"{at}\" x2=\"{to}\" y2=\"{at}\" {stroke}/>");
            let _ = writeln!(out, "<text x=\"{text}\" y=\"{base}\">{}</text>", escaped(&series.name));
        }
        out.push_str("</svg>\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_place_and_those_outside_the_edge() {
        let steps = Scale::Steps { label: String::new(), at: vec![0.0, 0.1, 10.0] };
        let log = Scale::Log { label: String::new(), from: 10.0, to: 1000.0 };
        for (scale, value, place) in
            [(&steps, 0.0, 0.0), (&steps, 0.1, 0.5), (&steps, 99.0, 1.0), (&log, 100.0, 0.5), (&log, 1.0, 0.0)]
        {
            assert!((scale.place(value) - place).abs() < 1e-9, "{scale:?} {value}");
        }
        assert_eq!(log.ticks().len(), 7);
    }

    #[test]
    fn a_plot_names_its_axes_and_lines() {
        let label = |text: &str| text.to_owned();
        let plot = Plot {
            title: label("a < b"),
            x: Scale::Linear { label: label("time"), from: 0.0, to: 1.0 },
            y: Scale::Linear { label: label("bytes"), from: 0.0, to: 1.0 },
            series: vec![Series { name: label("one"), points: vec![(0.0, 0.0), (1.0, 1.0)] }],
            marks: true,
        };
        let svg = plot.svg();
        for part in ["a &lt; b", ">time<", ">bytes<", ">one<", "polyline", "circle"] {
            assert!(svg.contains(part), "{part}");
        }
    }
}

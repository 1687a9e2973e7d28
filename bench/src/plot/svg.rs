//! The shapes that charts are drawn with.

use std::fmt::Write;

pub(super) const WIDTH: f64 = 960.0;
pub(super) const TEXT: &str = "#1f2933";
pub(super) const FAINT: &str = "#6b7785";
pub(super) const GRID: &str = "#e1e5ea";
pub(super) const PEER: &str = "#9aa5b1";
/// Colours that people with any kind of sight tell apart (Okabe and Ito, 2008), but the black and the yellow.
pub(super) const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00",
];

/// Where a text hangs on its point.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing under way.
#[derive(Debug, Default)]
pub(super) struct Drawing(String);

/// Text as it may stand in a drawing.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A figure with three digits that matter.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.3} M", value / 1e6),
        v if v >= 1e4 => format!("{:.1} k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A round number, as an axis has them.
pub(super) fn round(value: f64) -> String {
    for (least, unit) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value.abs() >= least {
            return format!("{}{unit}", value / least);
        }
    }
    // No axis needs more digits; without them tenths would show how computers count.
    format!("{}", (value * 1e6).round() / 1e6)
}

impl Drawing {
    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.push(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" stroke-width="{width}"/>"#
        ));
    }

    pub(super) fn path(&mut self, points: &[(f64, f64)], colour: &str, dashed: bool) {
        let mut at = String::new();
        for (x, y) in points {
            // A string takes whatever is written to it.
            let _ = write!(at, "{x:.1},{y:.1} ");
        }
        let (width, dash) = if dashed {
            (1.5, r#" stroke-dasharray="5 4""#)
        } else {
            (2.5, "")
        };
        self.push(format_args!(
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>"#,
            at.trim_end()
        ));
    }

    pub(super) fn dot(&mut self, (x, y): (f64, f64), radius: f64, colour: &str) {
        self.push(format_args!(
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" fill="{colour}"/>"#
        ));
    }

    pub(super) fn bar(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), colour: &str) {
        let width = width.max(1.0);
        self.push(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2" fill="{colour}"/>"#
        ));
    }

    pub(super) fn text(
        &mut self,
        (x, y): (f64, f64),
        size: u32,
        colour: &str,
        anchor: Anchor,
        text: &str,
    ) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.push(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{}</text>"#,
            escaped(text)
        ));
    }

    /// The title, and below it what else there is to say.
    pub(super) fn heading(&mut self, title: &str, note: &str) {
        self.push(format_args!(
            r#"<text x="20" y="32" font-size="18" font-weight="600" fill="{TEXT}">{}</text>"#,
            escaped(title)
        ));
        self.text((20.0, 52.0), 12, FAINT, Anchor::Start, note);
    }

    fn push(&mut self, shape: std::fmt::Arguments<'_>) {
        // A string takes whatever is written to it.
        let _ = writeln!(self.0, "{shape}");
    }

    /// The whole file.
    pub(super) fn finish(self, height: f64) -> String {
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0}" viewBox="0 0 {WIDTH} {height:.0}" font-family="DejaVu Sans, Helvetica, Arial, sans-serif">
<rect x="0" y="0" width="{WIDTH}" height="{height:.0}" fill="#ffffff"/>
{}</svg>
"##,
            self.0
        )
    }
}

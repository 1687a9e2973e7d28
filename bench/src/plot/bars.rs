//! Bars: one row below the other, each with its goal as a mark and its peer as a grey bar.

use super::Figure;
use super::svg::{Anchor, COLOURS, Drawing, FAINT, GRID, PEER, TEXT, WIDTH, number, round};

const LEFT: f64 = 20.0;
/// Where the longest bar ends: figures stand behind it.
const RIGHT: f64 = WIDTH - 330.0;
const TOP: f64 = 78.0;
/// Figures that lie further apart need an axis by powers of ten.
const WIDE: f64 = 60.0;

/// From a figure to its place.
struct Axis {
    least: f64,
    most: f64,
    logarithmic: bool,
}

impl Axis {
    fn new(figures: &[Figure]) -> Self {
        let values = || figures.iter().flat_map(Figure::values);
        let most = values().fold(f64::MIN_POSITIVE, f64::max);
        let least = values().filter(|v| *v > 0.0).fold(most, f64::min);
        let logarithmic = most / least > WIDE;
        Self {
            // Well below the least figure, so that it has a bar too.
            least: if logarithmic {
                10f64.powf((least / 2.0).log10().floor())
            } else {
                0.0
            },
            most,
            logarithmic,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value.max(self.least) / self.least).ln() / (self.most / self.least).ln()
        } else {
            value / self.most
        };
        LEFT + share.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let powers = std::iter::successors(Some(self.least), |tick| Some(tick * 10.0));
            return powers.take_while(|tick| *tick <= self.most).collect();
        }
        let step = step(self.most, 6.0);
        (0..)
            .map(|n| f64::from(n) * step)
            .take_while(|tick| *tick <= self.most)
            .collect()
    }
}

/// A round step that divides a range into about so many parts.
pub(super) fn step(range: f64, parts: f64) -> f64 {
    let power = 10f64.powf((range / parts).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power);
    steps
        .into_iter()
        .find(|step| range / step <= parts)
        .unwrap_or(steps[3])
}

pub(super) fn draw(title: &str, machine: &str, figures: &[Figure]) -> String {
    let axis = Axis::new(figures);
    let heights: Vec<f64> = figures
        .iter()
        .map(|figure| {
            if figure.peer_value.is_some() {
                64.0
            } else {
                48.0
            }
        })
        .collect();
    let bottom = TOP + heights.iter().sum::<f64>();
    let mut drawing = Drawing::default();
    let mut note = machine.to_owned();
    if axis.logarithmic {
        note += "; the axis is logarithmic";
    }
    if figures.iter().any(|figure| figure.goal.is_some()) {
        note += "; a black mark is a goal";
    }
    drawing.heading(title, &note);
    for tick in axis.ticks() {
        let x = axis.place(tick);
        drawing.line((x, TOP - 8.0), (x, bottom), GRID, 1.0);
        drawing.text((x, bottom + 16.0), 11, FAINT, Anchor::Middle, &round(tick));
    }
    let mut y = TOP;
    for (figure, height) in figures.iter().zip(heights) {
        row(&mut drawing, &axis, y, figure);
        y += height;
    }
    drawing.finish(bottom + 32.0)
}

fn row(drawing: &mut Drawing, axis: &Axis, y: f64, figure: &Figure) {
    drawing.text((LEFT, y + 10.0), 12, TEXT, Anchor::Start, figure.label());
    let (bar, end) = (y + 16.0, axis.place(figure.value));
    drawing.bar((LEFT, bar), (end - LEFT, 14.0), COLOURS[0]);
    let mut said = number(figure.value);
    if let (Some(goal), Some(met)) = (figure.goal, figure.met) {
        let x = axis.place(goal);
        drawing.line((x, bar - 3.0), (x, bar + 17.0), TEXT, 2.5);
        let verdict = if met { "met" } else { "not met" };
        said += &format!("   goal {}, {verdict}", round((goal * 1e3).round() / 1e3));
    }
    // Behind the bar and its goal's mark.
    let behind = end.max(figure.goal.map_or(end, |goal| axis.place(goal)));
    drawing.text((behind + 8.0, bar + 11.0), 12, TEXT, Anchor::Start, &said);
    if let (Some(peer), Some(value)) = (&figure.peer, figure.peer_value) {
        let end = axis.place(value);
        drawing.bar((LEFT, bar + 17.0), (end - LEFT, 10.0), PEER);
        let said = format!("{peer}: {}", number(value));
        drawing.text((end + 8.0, bar + 26.0), 11, FAINT, Anchor::Start, &said);
    }
}

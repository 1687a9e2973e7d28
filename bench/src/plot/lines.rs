//! Lines: how figures grow with a size. Sizes go by powers of ten; figures do if they lie far apart.

use super::bars::step;
use super::svg::{Anchor, COLOURS, Drawing, FAINT, GRID, TEXT, WIDTH, number, round};
use super::{Figure, Series};

const LEFT: f64 = 64.0;
/// Where the lines end: their names stand behind it.
const RIGHT: f64 = WIDTH - 330.0;
const TOP: f64 = 78.0;
const BOTTOM: f64 = 460.0;
/// Names of lines stand apart by so much.
const LEADING: f64 = 17.0;
/// Figures that lie further apart need an axis by powers of ten.
const WIDE: f64 = 20.0;

/// From sizes and figures to places.
struct Axes {
    sizes: (f64, f64),
    values: (f64, f64),
    logarithmic: bool,
}

impl Axes {
    fn new(series: &[Series]) -> Self {
        let points = || series.iter().flat_map(|series| &series.points);
        let values = || points().flat_map(|(_, figure)| figure.values());
        let sizes = || points().map(|(size, _)| size.max(1.0));
        let most = values().fold(f64::MIN_POSITIVE, f64::max);
        let least = values().filter(|v| *v > 0.0).fold(most, f64::min);
        let logarithmic = most / least > WIDE;
        let values = if logarithmic {
            let power = |value: f64, up: bool| {
                let power = value.log10();
                10f64.powf(if up { power.ceil() } else { power.floor() })
            };
            (power(least, false), power(most * 1.001, true))
        } else {
            (0.0, most * 1.05)
        };
        Self {
            sizes: (
                sizes().fold(f64::MAX, f64::min),
                sizes().fold(f64::MIN, f64::max),
            ),
            values,
            logarithmic,
        }
    }

    fn x(&self, size: f64) -> f64 {
        let (least, most) = self.sizes;
        LEFT + (size.max(1.0) / least).ln() / (most / least).ln() * (RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        let (least, most) = self.values;
        let share = if self.logarithmic {
            (value.max(least) / least).ln() / (most / least).ln()
        } else {
            value / most
        };
        BOTTOM - share.clamp(0.0, 1.0) * (BOTTOM - TOP)
    }

    fn ticks(&self) -> Vec<f64> {
        let (least, most) = self.values;
        if self.logarithmic {
            let powers = std::iter::successors(Some(least), |tick| Some(tick * 10.0));
            return powers.take_while(|tick| *tick <= most * 1.001).collect();
        }
        let step = step(most, 6.0);
        (0..)
            .map(|n| f64::from(n) * step)
            .take_while(|tick| *tick <= most)
            .collect()
    }
}

/// A name that is to stand at a height.
struct Name {
    y: f64,
    colour: &'static str,
    text: String,
}

pub(super) fn draw(title: &str, machine: &str, series: &[Series]) -> String {
    let axes = Axes::new(series);
    let mut drawing = Drawing::default();
    let mut note = machine.to_owned();
    if axes.logarithmic {
        note += "; both axes are logarithmic";
    }
    let figures = || series.iter().flat_map(|series| &series.points);
    if figures().any(|(_, figure)| figure.goal.is_some()) {
        note += "; a black mark is a goal";
    }
    if figures().any(|(_, figure)| figure.peer.is_some()) {
        note += "; a dashed line is a peer";
    }
    drawing.heading(title, &note);
    for tick in axes.ticks() {
        let y = axes.y(tick);
        drawing.line((LEFT, y), (RIGHT, y), GRID, 1.0);
        drawing.text((LEFT - 8.0, y + 4.0), 11, FAINT, Anchor::End, &round(tick));
    }
    let mut sizes: Vec<f64> = series
        .iter()
        .flat_map(|series| series.points.iter().map(|(size, _)| *size))
        .collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    for size in sizes {
        let x = axes.x(size);
        drawing.line((x, BOTTOM), (x, BOTTOM + 5.0), FAINT, 1.0);
        let place = (x, BOTTOM + 20.0);
        drawing.text(place, 11, FAINT, Anchor::Middle, &round(size));
    }
    let mut names = Vec::new();
    for (series, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        line(&mut drawing, &axes, series, colour, &mut names);
    }
    place(&mut names);
    for name in &names {
        let place = (RIGHT + 14.0, name.y + 4.0);
        drawing.text(place, 12, name.colour, Anchor::Start, &name.text);
    }
    drawing.finish(BOTTOM + 40.0)
}

fn line(
    drawing: &mut Drawing,
    axes: &Axes,
    series: &Series,
    colour: &'static str,
    names: &mut Vec<Name>,
) {
    let at = |value: &dyn Fn(&Figure) -> Option<f64>| -> Vec<(f64, f64)> {
        let points = series.points.iter();
        points
            .filter_map(|(size, figure)| Some((axes.x(*size), axes.y(value(figure)?))))
            .collect()
    };
    let peers = at(&|figure| figure.peer_value);
    drawing.path(&peers, colour, true);
    for point in &peers {
        drawing.dot(*point, 2.5, colour);
    }
    // Of several peers' methods the last one has the say.
    let peer = series.points.iter().rev().find_map(|(_, figure)| {
        let value = figure.peer_value?;
        Some((
            axes.y(value),
            format!("{}: {}", figure.peer.as_ref()?, number(value)),
        ))
    });
    names.extend(peer.map(|(y, text)| Name { y, colour, text }));
    let own = at(&|figure| Some(figure.value));
    drawing.path(&own, colour, false);
    for point in &own {
        drawing.dot(*point, 4.0, colour);
    }
    for (x, y) in at(&|figure| figure.goal) {
        drawing.line((x - 9.0, y), (x + 9.0, y), TEXT, 2.0);
    }
    if let Some((_, last)) = series.points.last() {
        let text = format!("{}: {}", series.label, number(last.value));
        let y = axes.y(last.value);
        names.push(Name { y, colour, text });
    }
}

/// Moves names apart that would stand on each other, none below the axis.
fn place(names: &mut [Name]) {
    names.sort_by(|a, b| a.y.total_cmp(&b.y));
    let mut free = TOP - LEADING;
    for name in names.iter_mut() {
        name.y = name.y.max(free);
        free = name.y + LEADING;
    }
    let mut floor = BOTTOM;
    for name in names.iter_mut().rev() {
        name.y = name.y.min(floor);
        floor = name.y - LEADING;
    }
}

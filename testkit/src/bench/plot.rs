//! Plots as SVG: time until all nodes have a write, against nodes and against keys, both axes logarithmic.
//!
//! Solid lines are of this run, dashed ones were recorded once. Colours follow the reader's light or dark scheme.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

use super::figure::{Figure, Plot, Unit};

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 230.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;
/// Lines are told apart by these classes of the style sheet; one more starts again.
const COLOURS: usize = 6;

const STYLE: &str = "
  svg { background: #ffffff; font: 13px sans-serif; }
  text { fill: #1f2328; } .grid { stroke: #d0d7de; } .axis { stroke: #57606a; }
  .c0 { stroke: #0969da; fill: #0969da; } .c1 { stroke: #cf222e; fill: #cf222e; }
  .c2 { stroke: #1a7f37; fill: #1a7f37; } .c3 { stroke: #8250df; fill: #8250df; }
  .c4 { stroke: #bc4c00; fill: #bc4c00; } .c5 { stroke: #57606a; fill: #57606a; }
  polyline { fill: none !important; stroke-width: 2; } .recorded { stroke-dasharray: 6 4; }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; } text { fill: #e6edf3; }
    .grid { stroke: #30363d; } .axis { stroke: #8b949e; }
    .c0 { stroke: #58a6ff; fill: #58a6ff; } .c1 { stroke: #ff7b72; fill: #ff7b72; }
    .c2 { stroke: #3fb950; fill: #3fb950; } .c3 { stroke: #d2a8ff; fill: #d2a8ff; }
    .c4 { stroke: #ffa657; fill: #ffa657; } .c5 { stroke: #8b949e; fill: #8b949e; }
  }
";

/// The points of one system, by what is on the horizontal axis.
type Lines = BTreeMap<(bool, String), Vec<(f64, f64)>>;

/// Draws one plot; `None` when no figure belongs to it.
#[must_use]
pub fn draw(plot: Plot, figures: &[Figure]) -> Option<String> {
    let lines = lines_of(plot, figures);
    let points = || lines.values().flatten();
    let columns = decades(points().map(|(x, _)| *x))?;
    let rows = decades(points().map(|(_, y)| *y))?;
    let axes = Axes { columns, rows };
    let (title, label) = match plot {
        Plot::Nodes => ("One key, until all nodes have it (median)", "nodes"),
        Plot::Keys => (
            "Keys written at once, until all of five nodes have them (median)",
            "keys",
        ),
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n\
         <text x=\"{LEFT}\" y=\"22\" font-weight=\"bold\">{title}</text>\n"
    );
    axes.grid(&mut svg, label);
    for (number, ((is_recorded, name), points)) in lines.iter().enumerate() {
        let kind = if *is_recorded { " recorded" } else { "" };
        let class = format!("c{}{kind}", number % COLOURS);
        axes.line(&mut svg, &class, points);
        legend(&mut svg, number, &class, name);
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn lines_of(plot: Plot, figures: &[Figure]) -> Lines {
    let mut lines = Lines::new();
    for figure in figures {
        let Some((_, x)) = figure.point.filter(|(of, _)| *of == plot) else {
            continue;
        };
        let name = figure.who.clone();
        let name = name.unwrap_or_else(|| "networkdb".to_owned());
        let line = lines.entry((false, name)).or_default();
        line.push((x, figure.median));
        for peer in &figure.peers {
            let name = format!("{}, recorded", peer.name);
            let line = lines.entry((true, name)).or_default();
            line.push((x, peer.median));
        }
    }
    for line in lines.values_mut() {
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
        line.dedup_by(|a, b| a.0 == b.0);
    }
    lines
}

/// The powers of ten around all values.
fn decades(values: impl Iterator<Item = f64>) -> Option<RangeInclusive<i32>> {
    let values: Vec<f64> = values.filter(|value| *value > 0.0).collect();
    let least = values.iter().copied().reduce(f64::min)?;
    let most = values.iter().copied().reduce(f64::max)?;
    let first = (-12..12).rev().find(|power| 10f64.powi(*power) <= least)?;
    let last = (-12..12).find(|power| 10f64.powi(*power) >= most)?;
    Some(first..=last.max(first + 1))
}

struct Axes {
    columns: RangeInclusive<i32>,
    rows: RangeInclusive<i32>,
}

impl Axes {
    fn x(&self, value: f64) -> f64 {
        LEFT + share(&self.columns, value) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - share(&self.rows, value) * (HEIGHT - TOP - BOTTOM)
    }

    fn grid(&self, svg: &mut String, label: &str) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for power in self.columns.clone() {
            let value = 10f64.powi(power);
            let x = self.x(value);
            put(svg, &line((x, TOP), (x, bottom), "grid"));
            let text = Unit::PerSecond.show(value).replace("/s", "");
            put(svg, &text_at((x, bottom + 20.0), "middle", text.trim()));
        }
        for power in self.rows.clone() {
            let value = 10f64.powi(power);
            let y = self.y(value);
            put(svg, &line((LEFT, y), (right, y), "grid"));
            let text = Unit::Time.show(value);
            put(svg, &text_at((LEFT - 8.0, y + 4.0), "end", &text));
        }
        put(svg, &line((LEFT, bottom), (right, bottom), "axis"));
        put(svg, &line((LEFT, TOP), (LEFT, bottom), "axis"));
        let middle = f64::midpoint(LEFT, right);
        put(svg, &text_at((middle, HEIGHT - 16.0), "middle", label));
        put(svg, &text_at((LEFT - 8.0, TOP - 10.0), "end", "time"));
    }

    fn line(&self, svg: &mut String, class: &str, points: &[(f64, f64)]) {
        let mut path = String::new();
        for (x, y) in points {
            let (x, y) = (self.x(*x), self.y(*y));
            write!(path, "{x:.1},{y:.1} ").expect("a string takes every write");
            put(
                svg,
                &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" class=\"{class}\"/>"),
            );
        }
        put(
            svg,
            &format!(
                "<polyline points=\"{}\" class=\"{class}\"/>",
                path.trim_end()
            ),
        );
    }
}

/// Where a value lies between the first and the last power of ten.
fn share(powers: &RangeInclusive<i32>, value: f64) -> f64 {
    let (first, last) = (f64::from(*powers.start()), f64::from(*powers.end()));
    (value.log10() - first) / (last - first)
}

fn legend(svg: &mut String, number: usize, class: &str, name: &str) {
    let (x, y) = (WIDTH - RIGHT + 20.0, TOP + 12.0 + 22.0 * number as f64);
    put(
        svg,
        &format!(
            "<polyline points=\"{x},{y} {},{y}\" class=\"{class}\"/>",
            x + 26.0
        ),
    );
    put(svg, &text_at((x + 34.0, y + 4.0), "start", name));
}

fn line((x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str) -> String {
    format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{class}\"/>")
}

fn text_at((x, y): (f64, f64), anchor: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>")
}

fn put(svg: &mut String, element: &str) {
    svg.push_str(element);
    svg.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_line_for_each_system_and_none_without_figures() {
        let figure = |nodes: f64, time: f64| {
            Figure::one("x", Unit::Time, time)
                .at(Plot::Nodes, nodes)
                .peer("Go", 100.0 * time, None)
        };
        let figures = [figure(3.0, 0.001), figure(30.0, 0.002)];
        let svg = draw(Plot::Nodes, &figures).unwrap();
        assert_eq!(svg.matches("<circle").count(), 4);
        // A line and its place in the legend for each.
        assert_eq!(svg.matches("<polyline").count(), 4);
        assert!(svg.contains("Go, recorded"), "{svg}");
        assert_eq!(draw(Plot::Keys, &figures), None);
    }

    #[test]
    fn decades_surround_all_values() {
        assert_eq!(decades([3.0, 100.0].into_iter()), Some(0..=2));
        assert_eq!(decades([1.0].into_iter()), Some(0..=1));
        assert_eq!(decades(std::iter::empty()), None);
    }
}

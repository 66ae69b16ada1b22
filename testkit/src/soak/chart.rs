//! A plot over minutes as SVG. Colours follow the reader's light or dark scheme.

use std::fmt::Write as _;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 40.0;
/// Lines of the grid, each way.
const STEPS: u32 = 5;
/// Lines are told apart by these hues, in degrees.
const HUES: [u32; 6] = [212, 0, 137, 265, 30, 180];

const STYLE: &str = "
  svg { background: #ffffff; font: 12px sans-serif; }
  text { fill: #1f2328; } .grid { stroke: #d0d7de; } polyline { fill: none; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; } text { fill: #e6edf3; } .grid { stroke: #30363d; }
  }
";

/// What is drawn.
pub(super) struct Chart {
    pub title: &'static str,
    /// Of the vertical axis.
    pub unit: &'static str,
    pub lines: Vec<Line>,
}

/// A line: minutes and values.
pub(super) struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Chart {
    /// Draws it; an axis ends with what is largest on it, or with 1.
    pub(super) fn draw(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let minutes = points().map(|(x, _)| *x).fold(1.0, f64::max);
        let most = points().map(|(_, y)| *y).fold(1.0, f64::max);
        let across = |x: f64| LEFT + x / minutes * (WIDTH - LEFT - RIGHT);
        let up = |y: f64| HEIGHT - BOTTOM - y / most * (HEIGHT - TOP - BOTTOM);
        let (title, unit) = (self.title, self.unit);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n\
             <text x=\"{LEFT}\" y=\"22\" font-weight=\"bold\">{title}</text>\n"
        );
        for step in 0..=STEPS {
            let share = f64::from(step) / f64::from(STEPS);
            let (x, y) = (across(share * minutes), up(share * most));
            let (minute, value) = (share * minutes, share * most);
            writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.0} {unit}</text>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{minute:.0} min</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                HEIGHT - BOTTOM + 18.0,
            )
            .expect("a string takes every write");
        }
        for (number, line) in self.lines.iter().enumerate() {
            let colour = format!("hsl({} 65% 50%)", HUES[number % HUES.len()]);
            let at: Vec<String> = line
                .points
                .iter()
                .map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y)))
                .collect();
            writeln!(
                svg,
                "<polyline stroke=\"{colour}\" points=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" style=\"fill: {colour}\">{}</text>",
                at.join(" "),
                WIDTH - RIGHT + 10.0,
                TOP + 16.0 * number as f64,
                line.name,
            )
            .expect("a string takes every write");
        }
        svg + "</svg>\n"
    }
}

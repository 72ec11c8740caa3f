//! Draws a report as an SVG: a bar per case, its stages below it.

use std::fmt::Write;

use super::report::Report;

const WIDTH: f64 = 900.0;
const LABEL: f64 = 230.0;
const ROW: f64 = 24.0;

/// The picture that the README shows.
pub fn draw(report: &Report) -> String {
    let longest = report
        .cases
        .values()
        .map(|case| case.p50)
        .fold(1.0, f64::max);
    let scale = (WIDTH - LABEL - 90.0) / longest;
    let mut rows = String::new();
    let mut y = 44.0;
    for (name, case) in &report.cases {
        bar(&mut rows, y, name, 0.0, case.p50, scale, "#1f6feb", true);
        y += ROW;
        let mut stages: Vec<_> = case.stages.iter().collect();
        stages.sort_by(|(_, a), (_, b)| a.begin.total_cmp(&b.begin));
        for (name, stage) in stages {
            bar(
                &mut rows,
                y,
                name,
                stage.begin,
                stage.end,
                scale,
                "#8ab4f8",
                false,
            );
            y += ROW * 0.75;
        }
        y += 8.0;
    }
    let unit = report.unit.replace('_', " ");
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="12" y="24" font-size="15" fill="#24292f">Start of a sandbox, {unit}, median of {runs} runs</text>
{rows}</svg>
"##,
        height = y + 8.0,
        runs = report.runs,
    )
}

#[allow(clippy::too_many_arguments)]
fn bar(
    rows: &mut String,
    y: f64,
    name: &str,
    begin: f64,
    end: f64,
    scale: f64,
    colour: &str,
    case: bool,
) {
    let (height, size, indent) = if case {
        (16.0, 13, 12.0)
    } else {
        (10.0, 11, 28.0)
    };
    let x = LABEL + begin * scale;
    let width = ((end - begin) * scale).max(1.0);
    let name = name.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(
        rows,
        r##"<text x="{indent}" y="{text:.1}" font-size="{size}" fill="#24292f">{name}</text><rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height}" rx="2" fill="{colour}"/><text x="{after:.1}" y="{text:.1}" font-size="{size}" fill="#57606a">{length:.1}</text>"##,
        text = y + height - 2.0,
        after = x + width + 6.0,
        length = end - begin,
    )
    .expect("a String takes every write");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::perf::report::{Case, Run};

    #[test]
    fn shows_every_case_and_stage() {
        let run = Run {
            total: Duration::from_millis(40),
            stages: vec![(
                "boot <1>".into(),
                Duration::from_millis(4),
                Duration::from_millis(30),
            )],
        };
        let report = Report {
            unit: "virtual_ms".into(),
            runs: 1,
            cases: [("vmm_cold".to_owned(), Case::of(&[run]))].into(),
        };
        let svg = draw(&report);
        for part in ["virtual ms", "vmm_cold", "boot &lt;1>", ">26.0<", ">40.0<"] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
    }
}
